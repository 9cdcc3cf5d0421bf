// LayerNorm(dropout(x) + residual), statistics in float32. A row's sum is made again in the backward pass: it is not
// kept, unless it is asked for (`total`), and then its norm is that of the sum as it is rounded there.
#include "loops.h"

static const int64_t MAX_COLUMNS = 8192;

template <class T, class R>
static void sum_row(const T *x, const R *residual, float *sum, int32_t columns, bool drops, RowDropout kept) {
    if (drops) {
#pragma omp simd
        for (int32_t c = 0; c < columns; c++)
            sum[c] = load(x[c]) * kept.factor(c);
    } else {
#pragma omp simd
        for (int32_t c = 0; c < columns; c++)
            sum[c] = load(x[c]);
    }
    if (residual) {
#pragma omp simd
        for (int32_t c = 0; c < columns; c++)
            sum[c] += load(residual[c]);
    }
}

template <class R> static void load_row(const R *x, float *to, int32_t columns) {
#pragma omp simd
    for (int32_t c = 0; c < columns; c++)
        to[c] = load(x[c]);
}

template <class R> static void add_row(const R *x, float *sum, int32_t columns) {
#pragma omp simd
    for (int32_t c = 0; c < columns; c++)
        sum[c] += load(x[c]);
}

template <class T, class R>
static void forward(const T *x, const R *residual, const float *weight, const float *bias, R *kept, T *out, float *mean,
                    float *rstd, int64_t rows, int64_t columns, int64_t stride, int64_t residual_stride, float eps,
                    Dropout dropout, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r++) {
        float sum[MAX_COLUMNS];
        int32_t count = int32_t(columns);
        sum_row(x + r * stride, residual ? residual + r * residual_stride : residual, sum, count, dropout.dropped > 0,
                dropout.row(r));
        if (kept) {
            store_row(kept + r * columns, sum, count);
            load_row(kept + r * columns, sum, count);
        }
        float total = 0, squares = 0;
#pragma omp simd reduction(+ : total)
        for (int32_t c = 0; c < count; c++)
            total += sum[c];
        float middle = total / count;
#pragma omp simd reduction(+ : squares)
        for (int32_t c = 0; c < count; c++)
            squares += (sum[c] - middle) * (sum[c] - middle);
        float scale = 1.0f / std::sqrt(squares / count + eps);
        mean[r] = middle;
        rstd[r] = scale;
        T *to = out + r * columns;
#pragma omp simd
        for (int32_t c = 0; c < count; c++)
            sum[c] = (sum[c] - middle) * scale * weight[c] + bias[c];
        store_row(to, sum, count);
    }
}

// `parameters` is (threads, 2, columns), zero: what each thread found for the gradients of weight and bias. Where
// `total` was kept, it is read instead of x and residual, and `dtotal` is its own gradient.
template <class T, class R>
static void backward(const T *dout, const T *x, const R *residual, const R *dtotal, const R *total, const float *weight,
                     const float *mean, const float *rstd, T *dx, R *dresidual, float *parameters, int64_t rows,
                     int64_t columns, int64_t stride, int64_t residual_stride, Dropout dropout, int threads) {
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int part = 0; part < threads; part++) {
        float *dweight = parameters + 2 * part * columns, *dbias = dweight + columns;
        int32_t count = int32_t(columns);
        for (int64_t r = rows * part / threads; r < rows * (part + 1) / threads; r++) {
            float normal[MAX_COLUMNS], weighted = 0, projected = 0;
            const RowDropout kept = dropout.row(r);
            if (total)
                load_row(total + r * stride, normal, count);
            else
                sum_row(x + r * stride, residual ? residual + r * residual_stride : residual, normal, count,
                        dropout.dropped > 0, kept);
            const T *from = dout + r * columns;
            float middle = mean[r], scale = rstd[r];
#pragma omp simd reduction(+ : weighted, projected)
            for (int32_t c = 0; c < count; c++) {
                float d = load(from[c]), n = (normal[c] - middle) * scale;
                normal[c] = n;
                dweight[c] += d * n;
                dbias[c] += d;
                weighted += d * weight[c];
                projected += d * weight[c] * n;
            }
            weighted /= count;
            projected /= count;
            T *to = dx + r * columns;
            R *also = dresidual ? dresidual + r * columns : dresidual;
#pragma omp simd
            for (int32_t c = 0; c < count; c++)
                normal[c] = scale * (load(from[c]) * weight[c] - weighted - normal[c] * projected);
            if (dtotal)
                add_row(dtotal + r * columns, normal, count);
            if (also)
                store_row(also, normal, count);
            if (dropout.dropped) {
#pragma omp simd
                for (int32_t c = 0; c < count; c++)
                    normal[c] *= kept.factor(c);
            }
            store_row(to, normal, count);
        }
    }
}

#define EXPORT(T, R, NAME)                                                                                             \
    extern "C" void layer_norm_forward_##NAME(                                                                         \
        const T *x, const R *residual, const float *weight, const float *bias, R *total, T *out, float *mean,          \
        float *rstd, int64_t rows, int64_t columns, int64_t stride, int64_t residual_stride, float eps, int64_t seed,  \
        int64_t dropped, float scale, int64_t threads) {                                                               \
        forward(x, residual, weight, bias, total, out, mean, rstd, rows, columns, stride, residual_stride, eps,        \
                Dropout{uint64_t(seed), uint64_t(dropped), scale}, int(threads));                                      \
    }                                                                                                                  \
    extern "C" void layer_norm_backward_##NAME(                                                                        \
        const T *dout, const T *x, const R *residual, const R *dtotal, const R *total, const float *weight,            \
        const float *mean, const float *rstd, T *dx, R *dresidual, float *parameters, int64_t rows, int64_t columns,   \
        int64_t stride, int64_t residual_stride, int64_t seed, int64_t dropped, float scale, int64_t threads) {        \
        backward(dout, x, residual, dtotal, total, weight, mean, rstd, dx, dresidual, parameters, rows, columns,       \
                 stride, residual_stride, Dropout{uint64_t(seed), uint64_t(dropped), scale}, int(threads));            \
    }
EXPORT(float, float, float32_float32)
EXPORT(float, bf16, float32_bfloat16)
EXPORT(bf16, float, bfloat16_float32)
EXPORT(bf16, bf16, bfloat16_bfloat16)
