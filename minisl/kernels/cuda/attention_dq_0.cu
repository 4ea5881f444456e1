// attention_dq, rung 0: a thread per query.
// dP = dO V^T, dS = P (dP - dO . O), dQ = dS K / sqrt(d), with P_ij = exp(q_i . k_j / sqrt(d) - logsumexp_i) made again as it is
// needed: what would have to be kept is a word per query, not per pair. delta_i = dO_i . O_i is kept for attention_dkv.
// Bytes: K and V for every query, 12 d a pair of positions, and dQ as often. Operations: 6 d a pair, and an exp.

extern "C" __global__ void attention_dq(const float* dout, const float* q, const float* k, const float* v, const float* o,
        const float* logsumexp, float* dq, float* delta, int heads, int kv_heads, int queries, int keys, int d, float root,
        long long qb, long long qh, long long qt, long long kb, long long kh, long long kt) {  // strides: batch, head, position
    const int i = blockIdx.x * blockDim.x + threadIdx.x, h = blockIdx.y, b = blockIdx.z;
    if (i >= queries) return;
    const size_t at = b * qb + h * qh + i * qt, kv = b * kb + h / (heads / kv_heads) * kh;
    const float total = logsumexp[(b * heads + h) * queries + i];
    float dot = 0;
    for (int c = 0; c < d; ++c) {
        dot += dout[at + c] * o[at + c];
        dq[at + c] = 0;
    }
    delta[(b * heads + h) * queries + i] = dot;
    for (int j = 0; j <= i + keys - queries; ++j) {
        float score = 0, dp = 0;
        for (int c = 0; c < d; ++c) {
            score += q[at + c] * k[kv + j * kt + c];
            dp += dout[at + c] * v[kv + j * kt + c];
        }
        const float ds = expf(root * score - total) * (dp - dot) * root;
        for (int c = 0; c < d; ++c)
            dq[at + c] += ds * k[kv + j * kt + c];
    }
}
