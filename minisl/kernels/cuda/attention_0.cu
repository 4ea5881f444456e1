// attention, rung 0: a thread per query.
// O_i = sum_j P_ij V_j with P = softmax(Q K^T / sqrt(d)) over keys j <= i + shift. A thread walks over its keys once: when a
// score is higher than all before, what it has so far shrinks to fit (online softmax), so no row of P is ever stored; only
// logsumexp_i, from which the backward pass has P again. Query head h reads key head h // (heads / kv_heads).
// Bytes: K and V for every query, 8 d a pair of positions, and O as often. Operations: 5 d a pair, and two exps.

#define LOWEST -3.4028235e38f  // of all floats; exp of the distance to it is 0

extern "C" __global__ void attention(const float* q, const float* k, const float* v, float* o, float* logsumexp,
        int heads, int kv_heads, int queries, int keys, int d, float root,
        long long qb, long long qh, long long qt, long long kb, long long kh, long long kt) {  // strides: batch, head, position
    const int i = blockIdx.x * blockDim.x + threadIdx.x, h = blockIdx.y, b = blockIdx.z;
    if (i >= queries) return;
    const size_t at = b * qb + h * qh + i * qt, kv = b * kb + h / (heads / kv_heads) * kh;
    float highest = LOWEST, sum = 0;
    for (int c = 0; c < d; ++c)
        o[at + c] = 0;
    for (int j = 0; j <= i + keys - queries; ++j) {
        float score = 0;
        for (int c = 0; c < d; ++c)
            score += q[at + c] * k[kv + j * kt + c];
        score *= root;
        const float top = fmaxf(highest, score), shrink = expf(highest - top), p = expf(score - top);
        for (int c = 0; c < d; ++c)
            o[at + c] = o[at + c] * shrink + p * v[kv + j * kt + c];
        sum = sum * shrink + p;
        highest = top;
    }
    for (int c = 0; c < d; ++c)
        o[at + c] /= sum;
    logsumexp[(b * heads + h) * queries + i] = highest + logf(sum);
}
