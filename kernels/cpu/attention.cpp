// Attention of each sequence of a stream to itself, a head at a time, BLOCK queries (forward) or BLOCK keys (backward)
// at a time, so that scores never leave a core's cache. Softmax in float32. The backward pass makes the weights again,
// from the saved logarithms of the softmax's denominators (FlashAttention, arXiv 2205.14135, appendix B.2, where delta
// is the sum of out dout, D there).
//
// With a window, a block meets only the blocks that its window reaches, and a long sequence is cut into pieces, so that
// what a core works on stays as small as for short ones. A piece owns its tokens' outputs and gradients, and sees those
// around it as far as the window reaches.
//
// Shapes: T tokens, N heads, H head size, S sequences; L the length of a sequence. `strides` are a token's, a part's
// (q, k, v), a head's.
#include <cstdlib>
#include <vector>

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
    // One part of one head from token `t` of the stream on.
    template <class T> T *part(T *qkv, int64_t t, int64_t h, int p) const {
        return qkv + t * strides[0] + p * strides[1] + h * strides[2];
    }
};

// Tokens of one sequence, counted in the stream: those that a piece owns, and those around them that it sees. All but a
// sequence's end are whole blocks from its beginning.
struct Piece {
    int64_t begin, end, from, to;

    int64_t seen() const { return to - from; }
};

static std::vector<Piece> pieces_of(const Stream &stream, int64_t sequences, int64_t window) {
    // The larger the fewer tokens are read twice; of 512, a head's operands fit a core's cache.
    int64_t most = window < 0 ? 0 : std::max<int64_t>(512, 4 * padded(window));
    std::vector<Piece> pieces;
    for (int64_t s = 0; s < sequences; s++) {
        int64_t length = stream.length(s), size = window < 0 ? length : most, start = stream.bounds[s];
        for (int64_t begin = 0; begin < length; begin += size) {
            int64_t end = std::min(begin + size, length), from = begin, to = end;
            if (window >= 0) {
                from = std::max<int64_t>(0, begin - window) / BLOCK * BLOCK;
                to = std::min(length, end + window);
            }
            pieces.push_back({start + begin, start + end, start + from, start + to});
        }
    }
    return pieces;
}

// Room for what the largest piece sees, in whole blocks.
static int64_t widest(const std::vector<Piece> &pieces) {
    int64_t most = 0;
    for (const Piece &piece : pieces)
        most = std::max(most, padded(piece.seen()));
    return most;
}

// Of `all` tokens, those that the `block` tokens from token `at` on meet, in whole such blocks.
struct Span {
    int64_t low, high;

    Span(int64_t at, int64_t block, int64_t all, int64_t window) : low(0), high(all) {
        if (window >= 0) {
            low = std::max<int64_t>(0, at - window) / block * block;
            high = std::min(all, padded(at + block + window, block));
        }
    }
    static int64_t widest(int64_t all, int64_t window) {
        return window < 0 ? all : std::min(all, BLOCK + 2 * padded(window));
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
    const std::vector<Piece> pieces = pieces_of(stream, sequences, bias.window);
    int64_t most = widest(pieces), reach = Span::widest(most, bias.window), width = padded(stream.size),
            size = stream.size, stride = stream.strides[0], block = bias.window < 0 ? BLOCK : Engine::GRAIN;
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch((2 * most + BLOCK) * width * sizeof(E) + BLOCK * reach * (4 + sizeof(E)) + BLOCK * width * 4 +
                        1024);
        E *q = scratch.piece<E>(BLOCK * width), *k = scratch.piece<E>(most * width),
          *v = scratch.piece<E>(most * width);
        float *scores = scratch.piece<float>(BLOCK * reach), *mixed = scratch.piece<float>(BLOCK * width);
        E *weights = scratch.piece<E>(BLOCK * reach);
        Engine engine;
        engine.begin();
#pragma omp for collapse(2) schedule(dynamic)
        for (size_t p = 0; p < pieces.size(); p++)
            for (int64_t h = 0; h < stream.heads; h++) {
                const Piece &piece = pieces[p];
                int64_t seen = piece.seen(), all = padded(seen), met = padded(seen, Engine::GRAIN);
                Engine::columns_of_b(stream.part(qkv, piece.from, h, 1), stride, seen, size, k);
                Engine::rows_of_b(stream.part(qkv, piece.from, h, 2), stride, seen, size, v);
                float slope = bias.slopes ? bias.slopes[h] : 0.0f;
                for (int64_t first = piece.begin; first < piece.end; first += block) {
                    int64_t here = std::min(block, piece.end - first), at = first - piece.from;
                    int64_t rows = padded(here, Engine::GRAIN);
                    const Span span(at, block, met, bias.window);
                    int64_t count = span.high - span.low;
                    float sums[BLOCK];
                    Engine::rows(stream.part(qkv, first, h, 0), stride, here, size, q);
                    Engine::product(q, width, Engine::column(k, span.low), all, scores, count, rows, count, width,
                                    false);
                    for (int64_t r = 0; r < rows; r++) {
                        float greatest;
                        if (r < here) {
                            softmax_row(scores + r * count, weights + r * count, int32_t(at - span.low + r),
                                        int32_t(std::min(seen, span.high) - span.low), int32_t(count), slope, bias,
                                        &greatest, &sums[r]);
                            lse[h * tokens + first + r] = greatest + std::log(sums[r]);
                        } else {
                            std::fill(weights + r * count, weights + (r + 1) * count, E{});
                        }
                    }
                    Engine::product(weights, count, v + span.low * width, width, mixed, width, rows, width, count,
                                    false);
                    for (int64_t r = 0; r < here; r++) {
                        T *to = out + ((first + r) * stream.heads + h) * size;
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

// Scores (of a key with all queries) and gradients of weights become weights and gradients of scores, as E. The key may
// lie before the queries, or behind them.
template <class E>
static void weights_of_key(float *scores, float *dweights, E *weights, E *dscores, int32_t j, int32_t length,
                           int32_t width, float slope, const Bias &bias, const float *lse, const float *delta) {
    int32_t begin = 0, end = length;
    if (bias.window >= 0) {
        begin = int32_t(std::clamp<int64_t>(j - bias.window, 0, length));
        end = int32_t(std::clamp<int64_t>(j + bias.window + 1, begin, length));
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
    const std::vector<Piece> pieces = pieces_of(stream, sequences, bias.window);
    int64_t most = widest(pieces), reach = Span::widest(most, bias.window), width = padded(stream.size),
            size = stream.size, heads = stream.heads, stride = stream.strides[0],
            block = bias.window < 0 ? BLOCK : Engine::GRAIN;
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(most * width * (4 * sizeof(E) + 4) + BLOCK * reach * (8 + 3 * sizeof(E)) +
                        BLOCK * width * (8 + 3 * sizeof(E)) + most * 4 + 2048);
        E *k = scratch.piece<E>(BLOCK * width), *v = scratch.piece<E>(BLOCK * width),
          *k_columns = scratch.piece<E>(BLOCK * width);
        E *q_columns = scratch.piece<E>(most * width), *do_columns = scratch.piece<E>(most * width);
        E *q_rows = scratch.piece<E>(most * width), *do_rows = scratch.piece<E>(most * width);
        float *scores = scratch.piece<float>(BLOCK * reach), *dweights = scratch.piece<float>(BLOCK * reach);
        E *weights = scratch.piece<E>(BLOCK * reach), *dscores = scratch.piece<E>(BLOCK * reach),
          *dscores_b = scratch.piece<E>(BLOCK * reach);
        float *dq_columns = scratch.piece<float>(most * width), *dk = scratch.piece<float>(BLOCK * width),
              *dv = scratch.piece<float>(BLOCK * width);
        float *delta = scratch.piece<float>(most);
        Engine engine;
        engine.begin();
#pragma omp for collapse(2) schedule(dynamic)
        for (size_t p = 0; p < pieces.size(); p++)
            for (int64_t h = 0; h < heads; h++) {
                const Piece &piece = pieces[p];
                int64_t start = piece.from, seen = piece.seen(), all = padded(seen),
                        met = padded(seen, Engine::GRAIN);
                const T *of_q = stream.part(qkv, start, h, 0), *of_k = stream.part(qkv, start, h, 1),
                        *of_v = stream.part(qkv, start, h, 2);
                const T *of_do = dout + start * dstrides[0] + h * dstrides[1];
                Engine::columns_of_b(of_q, stride, seen, size, q_columns);
                Engine::rows_of_b(of_q, stride, seen, size, q_rows);
                Engine::columns_of_b(of_do, dstrides[0], seen, size, do_columns);
                Engine::rows_of_b(of_do, dstrides[0], seen, size, do_rows);
                sums_of_products(out + (start * heads + h) * size, of_do, heads * size, dstrides[0], seen, size, delta);
                float slope = bias.slopes ? bias.slopes[h] : 0.0f;
                int64_t low = piece.begin - start, high = piece.end - start, part = heads * size;
                T *to = dqkv + (start * 3 * heads + h) * size; // dq; dk and dv are a part further each
                if (bias.window >= 0)
                    std::fill(dq_columns, dq_columns + all * width, 0.0f);
                for (int64_t first = 0; first < seen; first += block) {
                    bool own = low <= first && first < high;
                    Span span(first, block, met, bias.window);
                    if (!own) { // keys of which the queries that are the piece's own are all that matter
                        span.low = std::max(span.low, low);
                        span.high = std::min(span.high, padded(high, block));
                    }
                    int64_t here = std::min(block, seen - first), count = span.high - span.low;
                    int64_t rows = padded(here, Engine::GRAIN);
                    if (count <= 0)
                        continue;
                    Engine::rows(of_k + first * stride, stride, here, size, k);
                    Engine::columns(of_k + first * stride, stride, here, size, k_columns);
                    Engine::rows(of_v + first * stride, stride, here, size, v);
                    Engine::product(k, width, Engine::column(q_columns, span.low), all, scores, count, rows, count,
                                    width, false);
                    Engine::product(v, width, Engine::column(do_columns, span.low), all, dweights, count, rows, count,
                                    width, false);
                    for (int64_t r = 0; r < rows; r++) {
                        E *row = weights + r * count, *drow = dscores + r * count;
                        if (r < here) {
                            weights_of_key(scores + r * count, dweights + r * count, row, drow,
                                           int32_t(first - span.low + r),
                                           int32_t(std::min(seen, span.high) - span.low), int32_t(count), slope, bias,
                                           lse + h * tokens + start + span.low, delta + span.low);
                        } else {
                            std::fill(row, row + count, E{});
                            std::fill(drow, drow + count, E{});
                        }
                    }
                    Engine::rows_of_b(dscores, count, rows, count, dscores_b);
                    Engine::product(k_columns, BLOCK, dscores_b, padded(count), dq_columns + span.low, all, width,
                                    count, rows, bias.window >= 0 || first > 0);
                    if (!own)
                        continue;
                    Engine::product(weights, count, do_rows + span.low * width, width, dv, width, rows, width, count,
                                    false);
                    Engine::product(dscores, count, q_rows + span.low * width, width, dk, width, rows, width, count,
                                    false);
                    for (int64_t r = 0; r < std::min(block, high - first); r++) {
                        T *row = to + (first + r) * 3 * part;
#pragma omp simd
                        for (int32_t c = 0; c < int32_t(size); c++) {
                            store(&row[part + c], dk[r * width + c] * bias.scale);
                            store(&row[2 * part + c], dv[r * width + c]);
                        }
                    }
                }
                for (int64_t i = low; i < high; i++)
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
