// Rotary embedding of q and k: elements c and c + H / 2 of a head are turned by a token's angle c. v is copied.
//
// Shapes: T tokens, N heads, H head size. `strides` are a token's, a part's (q, k, v), a head's.
#include "loops.h"

static const int32_t CHUNK = 64; // columns that are turned before they are rounded and stored

// `direction` is 1, or -1 for the negative angles.
template <class T>
static void turn(const T *x, const float *cosines, const float *sines, T *out, int32_t half, float direction) {
    for (int32_t first = 0; first < half; first += CHUNK) {
        float low[CHUNK], high[CHUNK];
        int32_t count = std::min(CHUNK, half - first);
#pragma omp simd
        for (int32_t c = 0; c < count; c++) {
            float a = load(x[first + c]), b = load(x[half + first + c]);
            float cosine = cosines[first + c], sine = direction * sines[first + c];
            low[c] = a * cosine - b * sine;
            high[c] = b * cosine + a * sine;
        }
        store_row(out + first, low, count);
        store_row(out + half + first, high, count);
    }
}

template <class T>
static void rotate(const T *qkv, const int64_t *strides, const float *table, T *out, int64_t tokens, int64_t heads,
                   int64_t size, float direction, int threads) {
    int64_t half = size / 2;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t t = 0; t < tokens; t++) {
        const float *cosines = table + t * half, *sines = cosines + tokens * half;
        for (int64_t part = 0; part < 3; part++)
            for (int64_t h = 0; h < heads; h++) {
                const T *x = qkv + t * strides[0] + part * strides[1] + h * strides[2];
                T *to = out + ((t * 3 + part) * heads + h) * size;
                if (part < 2)
                    turn(x, cosines, sines, to, int32_t(half), direction);
                else
                    std::copy(x, x + size, to);
            }
    }
}

#define EXPORT(T, NAME)                                                                                                \
    extern "C" void rotary_##NAME(const T *qkv, const int64_t *strides, const float *table, T *out, int64_t tokens,    \
                                  int64_t heads, int64_t size, float direction, int64_t threads) {                     \
        rotate(qkv, strides, table, out, tokens, heads, size, direction, int(threads));                                \
    }
EXPORT(float, float32)
EXPORT(bf16, bfloat16)
