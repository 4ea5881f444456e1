// attention_dkv, rung 2: tiles of 32 queries and their gradients in shared memory.
// The 8 keys of a block are next to each other, and from the first of them on they are seen by the same queries: copied once,
// they serve all 8. The query in the tile that a key of the block is too late for has P = 0.
// Bytes: Q and dO once for 8 keys, 1 d a pair of positions. Operations: as before.

#define EACH 4  // components of a thread, so a head has at most 128
#define WARPS 8

extern "C" __global__ void __launch_bounds__(32 * WARPS) attention_dkv(const float* dout, const float* q, const float* k,
        const float* v, const float* delta, const float* logsumexp, float* dk, float* dv,
        int heads, int kv_heads, int queries, int keys, int d, float root,
        long long qb, long long qh, long long qt, long long kb, long long kh, long long kt) {  // strides: batch, head, position
    __shared__ float qs[32][32 * EACH + 1], douts[32][32 * EACH + 1];
    const int j = blockIdx.x * WARPS + threadIdx.y, g = blockIdx.y, b = blockIdx.z, group = heads / kv_heads;
    const int lane = threadIdx.x;
    const size_t kv = b * kb + g * kh + min(j, keys - 1) * kt;
    float dkj[EACH] = {}, dvj[EACH] = {};
    for (int h = g * group; h < (g + 1) * group; ++h)
        for (int first = max(0, (int)blockIdx.x * WARPS + queries - keys); first < queries; first += 32) {
            const size_t at = b * qb + h * qh + first * qt, row = (b * heads + h) * queries + first;
            const int count = min(32, queries - first);
            for (int t = threadIdx.y; t < count; t += WARPS)
                for (int c = lane; c < d; c += 32) {
                    qs[t][c] = q[at + t * qt + c];
                    douts[t][c] = dout[at + t * qt + c];
                }
            __syncthreads();
            const bool sees = lane < count && j <= first + lane + keys - queries;
            float score = 0, dp = 0;
#pragma unroll 8
            for (int c = 0; c < (sees ? d : 0); ++c) {
                score += qs[lane][c] * k[kv + c];
                dp += douts[lane][c] * v[kv + c];
            }
            const float p = sees ? expf(root * score - logsumexp[row + lane]) : 0;
            const float ds = sees ? p * (dp - delta[row + lane]) * root : 0;
            for (int l = 0; l < count; ++l) {
                const float pl = __shfl_sync(0xffffffff, p, l), dsl = __shfl_sync(0xffffffff, ds, l);
#pragma unroll
                for (int e = 0; e < EACH; ++e)
                    if (lane + 32 * e < d) {
                        dkj[e] += dsl * qs[l][lane + 32 * e];
                        dvj[e] += pl * douts[l][lane + 32 * e];
                    }
            }
            __syncthreads();
        }
    if (j >= keys) return;
#pragma unroll
    for (int e = 0; e < EACH; ++e)
        if (lane + 32 * e < d) {
            dk[kv + lane + 32 * e] = dkj[e];
            dv[kv + lane + 32 * e] = dvj[e];
        }
}
