// Attention of each sequence of a stream to itself, a head at a time, BLOCK queries (forward) or BLOCK keys (backward)
// at a time, so that scores never leave a core's cache. Softmax in float32. The backward pass makes the weights again,
// from the saved logarithms of the softmax's denominators (FlashAttention, arXiv 2205.14135, appendix B.2, where delta
// is the sum of out dout, D there).
//
// Shapes: T tokens, N heads, H head size, S sequences; L the length of a sequence. `strides` are a token's, a part's
// (q, k, v), a head's.
#include <cstdlib>

#include "products.h"

struct Bias {
    const float *slopes; // (N,), or null
    int64_t window;      // negative: none
    float scale;         // of the scores
};

// Memory of a thread, in pieces that begin at a cache line.
struct Scratch {
    char *memory, *next;

    explicit Scratch(int64_t bytes)
        : memory(static_cast<char *>(std::aligned_alloc(64, (bytes + 63) / 64 * 64))), next(memory) {}
    ~Scratch() { std::free(memory); }

    template <class E> E *piece(int64_t count) {
        E *here = reinterpret_cast<E *>(next);
        next += (count * int64_t(sizeof(E)) + 63) / 64 * 64;
        return here;
    }
};

struct Stream {
    int64_t heads, size;
    const int64_t *strides;
    const int32_t *bounds;

    int64_t length(int64_t s) const { return std::max(0, bounds[s + 1] - bounds[s]); }
    int64_t longest(int64_t sequences) const {
        int64_t most = 0;
        for (int64_t s = 0; s < sequences; s++)
            most = std::max(most, length(s));
        return padded(most);
    }
    template <class T> T *part(T *qkv, int64_t s, int64_t h, int p) const {
        return qkv + bounds[s] * strides[0] + p * strides[1] + h * strides[2];
    }
};

// Scores of a query with all keys become exp(score - greatest), as E; the greatest, and the sum.
template <class E>
static void softmax_row(float *x, E *weights, int32_t i, int32_t length, int32_t width, float slope, const Bias &bias,
                        float *greatest, float *sum) {
    int32_t begin = 0, end = length;
    if (bias.window >= 0) {
        begin = int32_t(std::max<int64_t>(0, i - bias.window));
        end = int32_t(std::min<int64_t>(length, i + bias.window + 1));
    }
    float most = -std::numeric_limits<float>::infinity(), total = 0;
#pragma omp simd reduction(max : most)
    for (int32_t j = begin; j < end; j++) {
        float y = x[j] * bias.scale - slope * std::fabs(float(i - j));
        x[j] = y;
        most = y > most ? y : most;
    }
#pragma omp simd reduction(+ : total)
    for (int32_t j = begin; j < end; j++) {
        float e = exp_of_negative(x[j] - most);
        total += e;
        x[j] = e;
    }
    store_row(weights + begin, x + begin, end - begin);
    std::fill(weights, weights + begin, E{});
    std::fill(weights + end, weights + width, E{});
    *greatest = most;
    *sum = total;
}

template <class Engine, class T>
static void forward(const T *qkv, T *out, float *lse, int64_t sequences, int64_t tokens, Stream stream, Bias bias,
                    int threads) {
    using E = typename Engine::Element;
    int64_t most = stream.longest(sequences), width = padded(stream.size), size = stream.size;
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(most * width * 3 * sizeof(E) + BLOCK * most * (4 + sizeof(E)) + BLOCK * width * 4 + 1024);
        E *q = scratch.piece<E>(most * width), *k = scratch.piece<E>(most * width), *v = scratch.piece<E>(most * width);
        float *scores = scratch.piece<float>(BLOCK * most), *mixed = scratch.piece<float>(BLOCK * width);
        E *weights = scratch.piece<E>(BLOCK * most);
        Engine engine;
        engine.begin();
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t s = 0; s < sequences; s++)
            for (int64_t h = 0; h < stream.heads; h++) {
                int64_t length = stream.length(s), all = padded(length), stride = stream.strides[0];
                Engine::rows(stream.part(qkv, s, h, 0), stride, length, size, q);
                Engine::columns_of_b(stream.part(qkv, s, h, 1), stride, length, size, k);
                Engine::rows_of_b(stream.part(qkv, s, h, 2), stride, length, size, v);
                float slope = bias.slopes ? bias.slopes[h] : 0.0f;
                for (int64_t first = 0; first < length; first += BLOCK) {
                    int64_t here = std::min(BLOCK, length - first);
                    float sums[BLOCK];
                    Engine::product(q + first * width, width, k, all, scores, BLOCK, width, false);
                    for (int64_t r = 0; r < BLOCK; r++) {
                        float greatest;
                        if (r < here) {
                            softmax_row(scores + r * all, weights + r * all, int32_t(first + r), int32_t(length),
                                        int32_t(all), slope, bias, &greatest, &sums[r]);
                            lse[h * tokens + stream.bounds[s] + first + r] = greatest + std::log(sums[r]);
                        } else {
                            std::fill(weights + r * all, weights + (r + 1) * all, E{});
                        }
                    }
                    Engine::product(weights, all, v, width, mixed, BLOCK, all, false);
                    for (int64_t r = 0; r < here; r++) {
                        T *to = out + ((stream.bounds[s] + first + r) * stream.heads + h) * size;
                        float share = 1.0f / sums[r];
#pragma omp simd
                        for (int32_t c = 0; c < int32_t(size); c++)
                            store(&to[c], mixed[r * width + c] * share);
                    }
                }
            }
        engine.end();
    }
}

// Scores (of a key with all queries) and gradients of weights become weights and gradients of scores, as E.
template <class E>
static void weights_of_key(float *scores, float *dweights, E *weights, E *dscores, int32_t j, int32_t length,
                           int32_t width, float slope, const Bias &bias, const float *lse, const float *delta) {
    int32_t begin = 0, end = length;
    if (bias.window >= 0) {
        begin = int32_t(std::max<int64_t>(0, j - bias.window));
        end = int32_t(std::min<int64_t>(length, j + bias.window + 1));
    }
#pragma omp simd
    for (int32_t i = begin; i < end; i++) {
        float w = exp_of_negative(scores[i] * bias.scale - slope * std::fabs(float(i - j)) - lse[i]);
        scores[i] = w;
        dweights[i] = w * (dweights[i] - delta[i]);
    }
    store_row(weights + begin, scores + begin, end - begin);
    store_row(dscores + begin, dweights + begin, end - begin);
    for (E *x : {weights, dscores}) {
        std::fill(x, x + begin, E{});
        std::fill(x + end, x + width, E{});
    }
}

// delta, the sum of out dout, of each query of a sequence and head
template <class T>
static void sums_of_products(const T *out, const T *dout, int64_t stride, int64_t dstride, int64_t length, int64_t size,
                             float *delta) {
    for (int64_t i = 0; i < length; i++) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int32_t c = 0; c < int32_t(size); c++)
            sum += load(out[i * stride + c]) * load(dout[i * dstride + c]);
        delta[i] = sum;
    }
}

// `dstrides` are dout's: a token's and a head's. dqkv has qkv's shape, side by side in memory.
template <class Engine, class T>
static void backward(const T *dout, const int64_t *dstrides, const T *qkv, const T *out, const float *lse, T *dqkv,
                     int64_t sequences, int64_t tokens, Stream stream, Bias bias, int threads) {
    using E = typename Engine::Element;
    int64_t most = stream.longest(sequences), width = padded(stream.size), size = stream.size, heads = stream.heads;
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(most * width * (7 * sizeof(E) + 4) + BLOCK * most * (8 + 3 * sizeof(E)) +
                        2 * BLOCK * width * 4 + most * 4 + 1024);
        E *k = scratch.piece<E>(most * width), *v = scratch.piece<E>(most * width),
          *k_columns = scratch.piece<E>(most * width);
        E *q_columns = scratch.piece<E>(most * width), *do_columns = scratch.piece<E>(most * width);
        E *q_rows = scratch.piece<E>(most * width), *do_rows = scratch.piece<E>(most * width);
        float *scores = scratch.piece<float>(BLOCK * most), *dweights = scratch.piece<float>(BLOCK * most);
        E *weights = scratch.piece<E>(BLOCK * most), *dscores = scratch.piece<E>(BLOCK * most),
          *dscores_b = scratch.piece<E>(BLOCK * most);
        float *dq_columns = scratch.piece<float>(most * width), *dk = scratch.piece<float>(BLOCK * width),
              *dv = scratch.piece<float>(BLOCK * width);
        float *delta = scratch.piece<float>(most);
        Engine engine;
        engine.begin();
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t s = 0; s < sequences; s++)
            for (int64_t h = 0; h < heads; h++) {
                int64_t length = stream.length(s), all = padded(length), stride = stream.strides[0],
                        start = stream.bounds[s];
                const T *of_q = stream.part(qkv, s, h, 0), *of_k = stream.part(qkv, s, h, 1),
                        *of_v = stream.part(qkv, s, h, 2);
                const T *of_do = dout + start * dstrides[0] + h * dstrides[1];
                Engine::rows(of_k, stride, length, size, k);
                Engine::columns(of_k, stride, length, size, k_columns);
                Engine::rows(of_v, stride, length, size, v);
                Engine::columns_of_b(of_q, stride, length, size, q_columns);
                Engine::rows_of_b(of_q, stride, length, size, q_rows);
                Engine::columns_of_b(of_do, dstrides[0], length, size, do_columns);
                Engine::rows_of_b(of_do, dstrides[0], length, size, do_rows);
                sums_of_products(out + (start * heads + h) * size, of_do, heads * size, dstrides[0], length, size,
                                 delta);
                float slope = bias.slopes ? bias.slopes[h] : 0.0f;
                T *to = dqkv + (start * 3 * heads + h) * size; // dq; dk and dv are a part further each
                int64_t part = heads * size;
                for (int64_t first = 0; first < length; first += BLOCK) {
                    int64_t here = std::min(BLOCK, length - first);
                    Engine::product(k + first * width, width, q_columns, all, scores, BLOCK, width, false);
                    Engine::product(v + first * width, width, do_columns, all, dweights, BLOCK, width, false);
                    for (int64_t r = 0; r < BLOCK; r++) {
                        if (r < here) {
                            weights_of_key(scores + r * all, dweights + r * all, weights + r * all, dscores + r * all,
                                           int32_t(first + r), int32_t(length), int32_t(all), slope, bias,
                                           lse + h * tokens + start, delta);
                        } else {
                            std::fill(weights + r * all, weights + (r + 1) * all, E{});
                            std::fill(dscores + r * all, dscores + (r + 1) * all, E{});
                        }
                    }
                    Engine::product(weights, all, do_rows, width, dv, BLOCK, all, false);
                    Engine::product(dscores, all, q_rows, width, dk, BLOCK, all, false);
                    Engine::rows_of_b(dscores, all, BLOCK, all, dscores_b);
                    Engine::product(k_columns + first, all, dscores_b, all, dq_columns, width, BLOCK, first > 0);
                    for (int64_t r = 0; r < here; r++) {
                        T *row = to + (first + r) * 3 * part;
#pragma omp simd
                        for (int32_t c = 0; c < int32_t(size); c++) {
                            store(&row[part + c], dk[r * width + c] * bias.scale);
                            store(&row[2 * part + c], dv[r * width + c]);
                        }
                    }
                }
                for (int64_t i = 0; i < length; i++)
                    for (int64_t c = 0; c < size; c++)
                        store(&to[i * 3 * part + c], dq_columns[c * all + i] * bias.scale);
            }
        engine.end();
    }
}

#if defined(__AMX_BF16__) && defined(__AMX_TILE__)
#define CHOOSE(RUN, ...)                                                                                               \
    if (Tiles::ready())                                                                                                \
        return RUN<Tiles>(__VA_ARGS__);                                                                                \
    return RUN<Vectors>(__VA_ARGS__);
#else
#define CHOOSE(RUN, ...) return RUN<Vectors>(__VA_ARGS__);
#endif
#define ALWAYS(RUN, ...) return RUN<Vectors>(__VA_ARGS__);

#define EXPORT(T, NAME, HOW)                                                                                           \
    extern "C" void attention_forward_##NAME(const T *qkv, const int64_t *strides, const int32_t *bounds,              \
                                             const float *slopes, T *out, float *lse, int64_t sequences,               \
                                             int64_t tokens, int64_t heads, int64_t size, int64_t window, float scale, \
                                             int64_t threads) {                                                        \
        HOW(forward, qkv, out, lse, sequences, tokens, Stream{heads, size, strides, bounds},                           \
            Bias{slopes, window, scale}, int(threads))                                                                 \
    }                                                                                                                  \
    extern "C" void attention_backward_##NAME(                                                                         \
        const T *dout, const int64_t *dstrides, const T *qkv, const int64_t *strides, const int32_t *bounds,           \
        const float *slopes, const T *out, const float *lse, T *dqkv, int64_t sequences, int64_t tokens,               \
        int64_t heads, int64_t size, int64_t window, float scale, int64_t threads) {                                   \
        HOW(backward, dout, dstrides, qkv, out, lse, dqkv, sequences, tokens, Stream{heads, size, strides, bounds},    \
            Bias{slopes, window, scale}, int(threads))                                                                 \
    }
EXPORT(float, float32, ALWAYS)
EXPORT(bf16, bfloat16, CHOOSE)
