// attention_dq, rung 1: a warp per query.
// As in the forward pass: a thread has a key while dS is made, 32 at a time, then every 32nd component of dQ, in registers, and
// the 32 dS_ij come to it by shuffles.
// Bytes: K and V for every query, dQ once. Operations: as before, and 32 shuffles for 32 keys.

#define EACH 4  // components of a thread, so a head has at most 128

extern "C" __global__ void attention_dq(const float* dout, const float* q, const float* k, const float* v, const float* o,
        const float* logsumexp, float* dq, float* delta, int heads, int kv_heads, int queries, int keys, int d, float root,
        long long qb, long long qh, long long qt, long long kb, long long kh, long long kt) {  // strides: batch, head, position
    const int i = blockIdx.x * blockDim.y + threadIdx.y, h = blockIdx.y, b = blockIdx.z, lane = threadIdx.x;
    if (i >= queries) return;
    const size_t at = b * qb + h * qh + i * qt, kv = b * kb + h / (heads / kv_heads) * kh;
    const float total = logsumexp[(b * heads + h) * queries + i];
    float dot = 0, dqi[EACH] = {};
    for (int c = 0; c < d; ++c)
        dot += dout[at + c] * o[at + c];
    if (lane == 0) delta[(b * heads + h) * queries + i] = dot;
    for (int first = 0; first <= i + keys - queries; first += 32) {
        const int j = first + lane, count = min(32, i + keys - queries + 1 - first);
        float score = 0, dp = 0;
        for (int c = 0; c < d && lane < count; ++c) {
            score += q[at + c] * k[kv + j * kt + c];
            dp += dout[at + c] * v[kv + j * kt + c];
        }
        const float ds = expf(root * score - total) * (dp - dot) * root;
        for (int l = 0; l < count; ++l) {
            const float dsl = __shfl_sync(0xffffffff, ds, l);
#pragma unroll
            for (int e = 0; e < EACH; ++e)
                if (lane + 32 * e < d) dqi[e] += dsl * k[kv + (first + l) * kt + lane + 32 * e];
        }
    }
#pragma unroll
    for (int e = 0; e < EACH; ++e)
        if (lane + 32 * e < d) dq[at + lane + 32 * e] = dqi[e];
}
