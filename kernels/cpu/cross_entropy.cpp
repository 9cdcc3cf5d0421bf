// The loss of rows of logits, and their gradients in the same memory: a row is read twice and written once, all in a
// core's cache.
#include <vector>

#include "loops.h"

struct Loss {
    float z_loss, smoothing;
};

// One row of logits without bias. `wide` holds float32 of a row. With `dbias`, which is added to, the row becomes its
// gradient.
template <class T>
static void row_loss(T *logits, const float *bias, int64_t label, int32_t count, Loss loss, float *wide, float *dbias,
                     float *sums) {
    float greatest = -std::numeric_limits<float>::infinity(), total = 0, all = 0;
#pragma omp simd reduction(max : greatest) reduction(+ : all)
    for (int32_t v = 0; v < count; v++) {
        float x = load(logits[v]) + bias[v];
        wide[v] = x;
        greatest = x > greatest ? x : greatest;
        all += x;
    }
    float of_label = wide[label];
#pragma omp simd reduction(+ : total)
    for (int32_t v = 0; v < count; v++) {
        float e = exp_of_negative(wide[v] - greatest);
        wide[v] = e;
        total += e;
    }
    float lse = greatest + std::log(total);
    sums[0] = lse - (1 - loss.smoothing) * of_label - loss.smoothing * all / count + loss.z_loss * lse * lse;
    sums[1] = of_label == greatest; // a tie for the greatest is right
    if (!dbias)
        return;
    float scale = (1 + 2 * loss.z_loss * lse) / total, share = loss.smoothing / count;
    float at_label = wide[label] * scale - share - (1 - loss.smoothing), before = dbias[label];
#pragma omp simd
    for (int32_t v = 0; v < count; v++) {
        float d = wide[v] * scale - share;
        store(&logits[v], d);
        dbias[v] += d;
    }
    store(&logits[label], at_label);
    dbias[label] = before + at_label;
}

// `sums` is (rows, 2), zero: loss, and whether the prediction is right. `dbias` is (threads, columns), or null.
template <class T>
static void losses(T *logits, const float *bias, const int64_t *labels, float *sums, float *dbias, int64_t rows,
                   int64_t columns, int64_t ignored, Loss loss, int threads) {
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int part = 0; part < threads; part++) {
        std::vector<float> wide(columns);
        for (int64_t r = rows * part / threads; r < rows * (part + 1) / threads; r++) {
            T *row = logits + r * columns;
            // One outside the vocabulary, which only a compiled graph lets through, counts as none.
            if (labels[r] != ignored && labels[r] >= 0 && labels[r] < columns)
                row_loss(row, bias, labels[r], int32_t(columns), loss, wide.data(),
                         dbias ? dbias + part * columns : dbias, sums + 2 * r);
            else if (dbias)
                std::fill(row, row + columns, T{});
        }
    }
}

// to = from, or to += from
template <class T> static void accumulate(float *to, const T *from, int64_t count, bool add, int threads) {
    if (add) {
#pragma omp parallel for simd schedule(static) num_threads(threads)
        for (int64_t i = 0; i < count; i++)
            to[i] += load(from[i]);
    } else {
#pragma omp parallel for simd schedule(static) num_threads(threads)
        for (int64_t i = 0; i < count; i++)
            to[i] = load(from[i]);
    }
}

#define EXPORT(T, NAME)                                                                                                \
    extern "C" void losses_##NAME(T *logits, const float *bias, const int64_t *labels, float *sums, float *dbias,      \
                                  int64_t rows, int64_t columns, int64_t ignored, float z_loss, float smoothing,       \
                                  int64_t threads) {                                                                   \
        losses(logits, bias, labels, sums, dbias, rows, columns, ignored, Loss{z_loss, smoothing}, int(threads));      \
    }                                                                                                                  \
    extern "C" void accumulate_##NAME(float *to, const T *from, int64_t count, int64_t add, int64_t threads) {         \
        accumulate(to, from, count, add != 0, int(threads));                                                           \
    }
EXPORT(float, float32)
EXPORT(bf16, bfloat16)
