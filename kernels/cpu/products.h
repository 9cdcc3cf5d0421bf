// Small matrix products C = A B or C += A B, float32 results, for operands that fit a core's cache: by AMX's tiles
// where the processor has them and the operands are bfloat16, otherwise in float32 by vectors. Operands are padded to
// BLOCK with zeros; sizes of a product are multiples of an engine's GRAIN.
//
// An engine has an element type for its operands and lays them out: `rows` for A; for B `rows_of_b`, or `columns_of_b`
// for the transposed of what is given. `x` is (rows, size) with `stride` elements between rows. A part of an operand or
// of C is a pointer to its first element and the whole's stride; `column` finds a column of B.
#pragma once

#include <type_traits>

#include "loops.h"

#if defined(__AMX_BF16__) && defined(__AMX_TILE__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

static const int64_t BLOCK = 32;

static inline int64_t padded(int64_t size, int64_t step = BLOCK) { return (size + step - 1) / step * step; }

template <class E, class T> static inline void put(E *to, T x) {
    if constexpr (std::is_same_v<E, T>)
        *to = x;
    else
        store(to, load(x));
}

// (padded rows, padded size) of (rows, size), as E
template <class E, class T> static void copy_rows(const T *x, int64_t stride, int64_t rows, int64_t size, E *to) {
    int64_t width = padded(size);
    for (int64_t r = 0; r < rows; r++) {
#pragma omp simd
        for (int32_t c = 0; c < int32_t(size); c++)
            put(&to[r * width + c], x[r * stride + c]);
        std::fill(to + r * width + size, to + (r + 1) * width, E{});
    }
    std::fill(to + rows * width, to + padded(rows) * width, E{});
}

// (padded size, padded rows) of (rows, size)
template <class E, class T> static void copy_columns(const T *x, int64_t stride, int64_t rows, int64_t size, E *to) {
    int64_t width = padded(rows);
    std::fill(to, to + padded(size) * width, E{});
    for (int64_t first = 0; first < rows; first += 16) // of which a cache line of each column is written at a time
        for (int64_t c = 0; c < size; c++)
            for (int64_t r = first; r < std::min(first + 16, rows); r++)
                put(&to[c * width + r], x[r * stride + c]);
}

struct Vectors {
    static const int64_t GRAIN = 16;
#ifdef __AVX512F__
    static const int WIDTH = 32; // of a row of sums: two registers
#else
    static const int WIDTH = 16;
#endif
    using Element = float;
    static bool ready() { return true; }
    void begin() {}
    void end() {}

    template <class T> static void rows(const T *x, int64_t stride, int64_t rows, int64_t size, float *to) {
        copy_rows(x, stride, rows, size, to);
    }
    template <class T> static void columns(const T *x, int64_t stride, int64_t rows, int64_t size, float *to) {
        copy_columns(x, stride, rows, size, to);
    }
    template <class T> static void rows_of_b(const T *x, int64_t stride, int64_t rows, int64_t size, float *to) {
        copy_rows(x, stride, rows, size, to);
    }
    template <class T> static void columns_of_b(const T *x, int64_t stride, int64_t rows, int64_t size, float *to) {
        copy_columns(x, stride, rows, size, to);
    }

    static const float *column(const float *b, int64_t j) { return b + j; }

    // (m, n) = (m, k) (k, n), four rows of sums at a time in registers
    static void product(const float *a, int64_t stride_a, const float *b, int64_t stride_b, float *c, int64_t stride_c,
                        int64_t m, int64_t n, int64_t k, bool add) {
        for (int64_t i = 0; i < m; i += 4) {
            const float *left = a + i * stride_a;
            int64_t j = 0;
            for (; j + WIDTH <= n; j += WIDTH)
                tile<WIDTH>(left, stride_a, b + j, stride_b, c + i * stride_c + j, stride_c, k, add);
            if (j < n)
                tile<GRAIN>(left, stride_a, b + j, stride_b, c + i * stride_c + j, stride_c, k, add);
        }
    }

  private:
    template <int COLUMNS>
    static void tile(const float *a, int64_t stride_a, const float *b, int64_t stride_b, float *c, int64_t stride_c,
                     int64_t k, bool add) {
        float sums[4][COLUMNS];
        for (int r = 0; r < 4; r++)
            for (int v = 0; v < COLUMNS; v++)
                sums[r][v] = add ? c[r * stride_c + v] : 0.0f;
        for (int64_t at = 0; at < k; at++)
            for (int r = 0; r < 4; r++) {
                float factor = a[r * stride_a + at];
#pragma omp simd
                for (int v = 0; v < COLUMNS; v++)
                    sums[r][v] += factor * b[at * stride_b + v];
            }
        for (int r = 0; r < 4; r++)
            for (int v = 0; v < COLUMNS; v++)
                c[r * stride_c + v] = sums[r][v];
    }
};

#if defined(__AMX_BF16__) && defined(__AMX_TILE__)
// B's elements lie in pairs along k: 32-bit words (k / 2, n).
struct Tiles {
    static const int64_t GRAIN = BLOCK;
    using Element = bf16;

    // The system must let a process use the tiles' state (arch_prctl ARCH_REQ_XCOMP_PERM, state 18).
    static bool ready() {
        static bool allowed = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
        return allowed;
    }

    void begin() {
        alignas(64) uint8_t config[64] = {1}; // palette 1
        for (int tile = 0; tile < 8; tile++) {
            config[16 + 2 * tile] = 64; // bytes of a row
            config[48 + tile] = 16;     // rows
        }
        _tile_loadconfig(config);
    }
    void end() { _tile_release(); }

    static void rows(const bf16 *x, int64_t stride, int64_t rows, int64_t size, bf16 *to) {
        copy_rows(x, stride, rows, size, to);
    }
    static void columns(const bf16 *x, int64_t stride, int64_t rows, int64_t size, bf16 *to) {
        copy_columns(x, stride, rows, size, to);
    }

    static void rows_of_b(const bf16 *x, int64_t stride, int64_t rows, int64_t size, bf16 *to) {
        int64_t width = padded(size);
        std::fill(to, to + padded(rows) * width, bf16{});
        uint32_t *words = reinterpret_cast<uint32_t *>(to);
        for (int64_t r = 0; r < rows; r += 2) {
            const bf16 *low = x + r * stride, *high = low + stride;
            uint32_t *pair = words + r / 2 * width;
            if (r + 1 < rows) {
#pragma omp simd
                for (int32_t c = 0; c < int32_t(size); c++)
                    pair[c] = uint32_t(low[c].bits) | uint32_t(high[c].bits) << 16;
            } else {
                for (int64_t c = 0; c < size; c++)
                    pair[c] = low[c].bits;
            }
        }
    }

    static void columns_of_b(const bf16 *x, int64_t stride, int64_t rows, int64_t size, bf16 *to) {
        int64_t width = padded(rows);
        std::fill(to, to + padded(size) * width, bf16{});
        uint32_t *words = reinterpret_cast<uint32_t *>(to);
        for (int64_t first = 0; first < rows; first += 16)
            for (int64_t c = 0; c < size; c += 2)
                for (int64_t r = first; r < std::min(first + 16, rows); r++) {
                    const bf16 *pair = x + r * stride + c;
                    words[c / 2 * width + r] =
                        uint32_t(pair[0].bits) | (c + 1 < size ? uint32_t(pair[1].bits) << 16 : 0);
                }
    }

    static const bf16 *column(const bf16 *b, int64_t j) { return b + 2 * j; } // of the first pair of rows

    static void product(const bf16 *a, int64_t stride_a, const bf16 *b, int64_t stride_b, float *c, int64_t stride_c,
                        int64_t m, int64_t n, int64_t k, bool add) {
        asm volatile(
            "" ::
                : "memory"); // compilers do not know that tiles are loaded from memory: all must have been stored
        for (int64_t i = 0; i < m; i += 32)
            for (int64_t j = 0; j < n; j += 32) {
                float *upper = c + i * stride_c + j, *lower = upper + 16 * stride_c;
                if (add) {
                    _tile_loadd(0, upper, stride_c * 4);
                    _tile_loadd(1, upper + 16, stride_c * 4);
                    _tile_loadd(2, lower, stride_c * 4);
                    _tile_loadd(3, lower + 16, stride_c * 4);
                } else {
                    _tile_zero(0);
                    _tile_zero(1);
                    _tile_zero(2);
                    _tile_zero(3);
                }
                for (int64_t at = 0; at < k; at += 32) {
                    const bf16 *left = a + i * stride_a + at, *right = b + at * stride_b + 2 * j;
                    _tile_loadd(4, left, stride_a * 2);
                    _tile_loadd(5, left + 16 * stride_a, stride_a * 2);
                    _tile_loadd(6, right, stride_b * 4);
                    _tile_loadd(7, right + 32, stride_b * 4);
                    _tile_dpbf16ps(0, 4, 6);
                    _tile_dpbf16ps(1, 4, 7);
                    _tile_dpbf16ps(2, 5, 6);
                    _tile_dpbf16ps(3, 5, 7);
                }
                _tile_stored(0, upper, stride_c * 4);
                _tile_stored(1, upper + 16, stride_c * 4);
                _tile_stored(2, lower, stride_c * 4);
                _tile_stored(3, lower + 16, stride_c * 4);
            }
    }
};
#endif
