// attention_dkv, rung 1: a warp per key.
// A thread has a query while P and dS are made, 32 at a time, then every 32nd component of dK and dV, in registers.
// Bytes: Q and dO for every key, dK and dV once. Operations: as before, and 64 shuffles for 32 queries.

#define EACH 4  // components of a thread, so a head has at most 128

extern "C" __global__ void attention_dkv(const float* dout, const float* q, const float* k, const float* v, const float* delta,
        const float* logsumexp, float* dk, float* dv, int heads, int kv_heads, int queries, int keys, int d, float root,
        long long qb, long long qh, long long qt, long long kb, long long kh, long long kt) {  // strides: batch, head, position
    const int j = blockIdx.x * blockDim.y + threadIdx.y, g = blockIdx.y, b = blockIdx.z, group = heads / kv_heads;
    const int lane = threadIdx.x;
    if (j >= keys) return;
    const size_t kv = b * kb + g * kh + j * kt;
    float dkj[EACH] = {}, dvj[EACH] = {};
    for (int h = g * group; h < (g + 1) * group; ++h)
        for (int first = max(0, j + queries - keys); first < queries; first += 32) {
            const size_t at = b * qb + h * qh + first * qt, row = (b * heads + h) * queries + first;
            const int count = min(32, queries - first);
            float score = 0, dp = 0;
            for (int c = 0; c < d && lane < count; ++c) {
                score += q[at + lane * qt + c] * k[kv + c];
                dp += dout[at + lane * qt + c] * v[kv + c];
            }
            const float p = lane < count ? expf(root * score - logsumexp[row + lane]) : 0;
            const float ds = lane < count ? p * (dp - delta[row + lane]) * root : 0;
            for (int l = 0; l < count; ++l) {
                const float pl = __shfl_sync(0xffffffff, p, l), dsl = __shfl_sync(0xffffffff, ds, l);
#pragma unroll
                for (int e = 0; e < EACH; ++e)
                    if (lane + 32 * e < d) {
                        dkj[e] += dsl * q[at + l * qt + lane + 32 * e];
                        dvj[e] += pl * dout[at + l * qt + lane + 32 * e];
                    }
            }
        }
#pragma unroll
    for (int e = 0; e < EACH; ++e)
        if (lane + 32 * e < d) {
            dk[kv + lane + 32 * e] = dkj[e];
            dv[kv + lane + 32 * e] = dvj[e];
        }
}
