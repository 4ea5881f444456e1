// attention_dkv, rung 0: a thread per key.
// dV = P^T dO, dK = dS^T Q / sqrt(d): sums over the queries that see this key, of all heads that read it. One thread makes both
// sums alone, so nobody adds to the same place. delta_i = dO_i . O_i comes from attention_dq.
// Bytes: Q and dO for every key, 16 d a pair of positions, dK and dV as often. Operations: 8 d a pair, and an exp.

extern "C" __global__ void attention_dkv(const float* dout, const float* q, const float* k, const float* v, const float* delta,
        const float* logsumexp, float* dk, float* dv, int heads, int kv_heads, int queries, int keys, int d, float root,
        long long qb, long long qh, long long qt, long long kb, long long kh, long long kt) {  // strides: batch, head, position
    const int j = blockIdx.x * blockDim.x + threadIdx.x, g = blockIdx.y, b = blockIdx.z, group = heads / kv_heads;
    if (j >= keys) return;
    const size_t kv = b * kb + g * kh + j * kt;
    for (int c = 0; c < d; ++c)
        dk[kv + c] = dv[kv + c] = 0;
    for (int h = g * group; h < (g + 1) * group; ++h)
        for (int i = max(0, j + queries - keys); i < queries; ++i) {
            const size_t at = b * qb + h * qh + i * qt, row = (b * heads + h) * queries + i;
            float score = 0, dp = 0;
            for (int c = 0; c < d; ++c) {
                score += q[at + c] * k[kv + c];
                dp += dout[at + c] * v[kv + c];
            }
            const float p = expf(root * score - logsumexp[row]), ds = p * (dp - delta[row]) * root;
            for (int c = 0; c < d; ++c) {
                dk[kv + c] += ds * q[at + c];
                dv[kv + c] += p * dout[at + c];
            }
        }
}
