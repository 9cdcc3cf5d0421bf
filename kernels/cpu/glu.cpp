// The gated unit's pointwise half. Each row's pass reads its two halves once and writes once.
#include "loops.h"

enum Activation { GELU, SILU, RELU };

// activation(a), and with `slope` also its derivative
template <int A> static inline float activate(float a, float *slope) {
    if (A == RELU) {
        *slope = a > 0 ? 1.0f : 0.0f;
        return a < 0 ? 0.0f : a;
    }
    if (A == SILU) {
        float e = exp_of_negative(-std::fabs(a));
        float share = (a < 0 ? e : 1.0f) / (1.0f + e);
        *slope = share * (1.0f + a * (1.0f - share));
        return a * share;
    }
    float density, ratio;
    normal_tail(a, &density, &ratio);
    float share = a < 0 ? density * ratio : 1.0f - density * ratio;
    *slope = share + a * density * 0.398942280f;
    return a * share;
}

template <class T, int A, bool DROPS>
static void forward(const T *x, T *out, int64_t rows, int64_t columns, Dropout dropout, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r++) {
        const T *a = x + 2 * r * columns, *b = a + columns;
        T *to = out + r * columns;
        const RowDropout kept = dropout.row(r);
#pragma omp simd
        for (int32_t c = 0; c < int32_t(columns); c++) {
            float slope, y = activate<A>(load(a[c]), &slope) * load(b[c]);
            store(&to[c], DROPS ? y * kept.factor(c) : y);
        }
    }
}

template <class T, int A, bool DROPS>
static void backward(const T *dout, const T *x, T *dx, int64_t rows, int64_t columns, Dropout dropout, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r++) {
        const T *a = x + 2 * r * columns, *b = a + columns, *from = dout + r * columns;
        T *da = dx + 2 * r * columns, *db = da + columns;
        const RowDropout kept = dropout.row(r);
#pragma omp simd
        for (int32_t c = 0; c < int32_t(columns); c++) {
            float d = DROPS ? load(from[c]) * kept.factor(c) : load(from[c]);
            float slope, y = activate<A>(load(a[c]), &slope);
            store(&da[c], d * load(b[c]) * slope);
            store(&db[c], d * y);
        }
    }
}

// Calls RUN<T, activation, whether anything is dropped>(...)
#define CHOOSE(RUN, T, ...)                                                                                            \
    switch (2 * activation + (dropped > 0)) {                                                                          \
    case 2 * GELU:                                                                                                     \
        return RUN<T, GELU, false>(__VA_ARGS__);                                                                       \
    case 2 * GELU + 1:                                                                                                 \
        return RUN<T, GELU, true>(__VA_ARGS__);                                                                        \
    case 2 * SILU:                                                                                                     \
        return RUN<T, SILU, false>(__VA_ARGS__);                                                                       \
    case 2 * SILU + 1:                                                                                                 \
        return RUN<T, SILU, true>(__VA_ARGS__);                                                                        \
    case 2 * RELU:                                                                                                     \
        return RUN<T, RELU, false>(__VA_ARGS__);                                                                       \
    case 2 * RELU + 1:                                                                                                 \
        return RUN<T, RELU, true>(__VA_ARGS__);                                                                        \
    }

#define EXPORT(T, NAME)                                                                                                \
    extern "C" void glu_forward_##NAME(const T *x, T *out, int64_t rows, int64_t columns, int64_t activation,          \
                                       int64_t seed, int64_t dropped, float scale, int64_t threads) {                  \
        Dropout dropout{uint64_t(seed), uint64_t(dropped), scale};                                                     \
        CHOOSE(forward, T, x, out, rows, columns, dropout, int(threads))                                               \
    }                                                                                                                  \
    extern "C" void glu_backward_##NAME(const T *dout, const T *x, T *dx, int64_t rows, int64_t columns,               \
                                        int64_t activation, int64_t seed, int64_t dropped, float scale,                \
                                        int64_t threads) {                                                             \
        Dropout dropout{uint64_t(seed), uint64_t(dropped), scale};                                                     \
        CHOOSE(backward, T, dout, x, dx, rows, columns, dropout, int(threads))                                         \
    }
EXPORT(float, float32)
EXPORT(bf16, bfloat16)
