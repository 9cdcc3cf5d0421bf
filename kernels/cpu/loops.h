// What the loops share: bfloat16, exp, the normal distribution, dropout's random numbers. Written so that a compiler
// makes vectors of all of it (`#pragma omp simd`), whatever their width. One rounding is a processor's own instruction.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

struct bf16 {
    uint16_t bits;
};

static inline float load(float x) { return x; }
static inline float load(bf16 x) { return std::bit_cast<float>(uint32_t(x.bits) << 16); }

static inline void store(float *to, float x) { *to = x; }

// To the nearest, ties to even; what is no number stays none.
static inline void store(bf16 *to, float x) {
    uint32_t bits = std::bit_cast<uint32_t>(x);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to->bits = uint16_t(x == x ? rounded : 0x7fc0);
}

// A row of them; AVX512-BF16 has an instruction for sixteen, which takes what is below 1e-38 for 0.
static inline void store_row(float *to, const float *from, int32_t count) { std::copy(from, from + count, to); }

static inline void store_row(bf16 *to, const float *from, int32_t count) {
    int32_t c = 0;
#ifdef __AVX512BF16__
    for (; c + 16 <= count; c += 16)
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(to + c),
                            (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + c)));
#endif
#pragma omp simd
    for (int32_t i = c; i < count; i++)
        store(&to[i], from[i]);
}

// exp(x) for x <= 0, to 1e-7 of itself; 0 below -87. 2^n exp(r) with |r| <= log(2) / 2, the polynomial fitted to the
// relative error.
static inline float exp_of_negative(float x) {
    float shifted = x * 1.44269504f + 12582912.0f; // 1.5 * 2^23: the rounded number is in the low bits
    float n = shifted - 12582912.0f;
    float r = x - n * 0.693145752f - n * 1.42860677e-6f;
    float p = 1.38368399e-3f;
    p = p * r + 8.37481581e-3f;
    p = p * r + 4.16682251e-2f;
    p = p * r + 0.166664198f;
    p = p * r + 0.49999991f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    uint32_t power = (std::bit_cast<uint32_t>(shifted) << 23) + 0x3f800000u;
    float y = p * std::bit_cast<float>(power);
    return x < -87.0f ? 0.0f : y; // false for what is no number, which y is then
}

// exp(-x^2 / 2), and what it must be multiplied by for the share of the normal distribution beyond |x|: Mills' ratio /
// sqrt(2 pi) as a polynomial in 1 / (1 + 0.3 |x|), fitted to the relative error (3e-7 in float32).
static inline void normal_tail(float x, float *density, float *ratio) {
    float t = 1.0f / (1.0f + 0.3f * std::fabs(x));
    float p = 3.56751829e-2f;
    p = p * t - 0.157204688f;
    p = p * t + 0.206356078f;
    p = p * t - 5.36858365e-2f;
    p = p * t + 0.128562689f;
    p = p * t + 9.99132022e-2f;
    p = p * t + 0.120753996f;
    p = p * t + 0.119629294f;
    *ratio = p * t;
    *density = exp_of_negative(-0.5f * x * x);
}

// Dropout: element c of row r is kept if the hash of (seed, r, c) is not below the probability times 2^32.
struct RowDropout {
    uint32_t key, dropped;
    float scale;

    // The factor of an element: 0 or `scale`. A 32-bit finalizer.
    float factor(int32_t c) const {
        uint32_t x = key + uint32_t(c) * 0x9e3779b9u;
        x = (x ^ (x >> 16)) * 0x7feb352du;
        x = (x ^ (x >> 15)) * 0x846ca68bu;
        x ^= x >> 16;
        return x >= dropped ? scale : 0.0f;
    }
};

struct Dropout {
    uint64_t seed;
    uint64_t dropped; // the probability times 2^32; of 2^32 the scale is 0
    float scale;      // of what is kept

    // A value of its own, which no store in a loop can change.
    RowDropout row(int64_t r) const { // splitmix64's finalizer
        uint64_t z = seed + uint64_t(r) * 0x9e3779b97f4a7c15ull;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return {uint32_t(z ^ (z >> 31)), uint32_t(dropped), scale};
    }
};
