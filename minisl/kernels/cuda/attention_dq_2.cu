// attention_dq, rung 2: tiles of 32 keys and values in shared memory.
// Copied once for the 8 queries of a block, and read by threads that each have a row of the tile, in 32 different banks.
// Bytes: K and V once for 8 queries, 1 d a pair of positions. Operations: as before.

#define EACH 4  // components of a thread, so a head has at most 128
#define WARPS 8

extern "C" __global__ void __launch_bounds__(32 * WARPS) attention_dq(const float* dout, const float* q, const float* k,
        const float* v, const float* o, const float* logsumexp, float* dq, float* delta,
        int heads, int kv_heads, int queries, int keys, int d, float root,
        long long qb, long long qh, long long qt, long long kb, long long kh, long long kt) {  // strides: batch, head, position
    __shared__ float ks[32][32 * EACH + 1], vs[32][32 * EACH + 1];
    const int i = blockIdx.x * WARPS + threadIdx.y, h = blockIdx.y, b = blockIdx.z, lane = threadIdx.x;
    const size_t at = b * qb + h * qh + min(i, queries - 1) * qt, kv = b * kb + h / (heads / kv_heads) * kh;
    const float total = logsumexp[(b * heads + h) * queries + min(i, queries - 1)];
    float dot = 0, dqi[EACH] = {};
    for (int c = 0; c < d; ++c)
        dot += dout[at + c] * o[at + c];
    if (lane == 0 && i < queries) delta[(b * heads + h) * queries + i] = dot;
    for (int first = 0; first < min(keys, (int)(blockIdx.x + 1) * WARPS + keys - queries); first += 32) {
        for (int t = threadIdx.y; t < min(32, keys - first); t += WARPS)
            for (int c = lane; c < d; c += 32) {
                ks[t][c] = k[kv + (first + t) * kt + c];
                vs[t][c] = v[kv + (first + t) * kt + c];
            }
        __syncthreads();
        const int count = min(32, min(i, queries - 1) + keys - queries + 1 - first);  // below 1: this query is done
        float score = 0, dp = 0;
#pragma unroll 8
        for (int c = 0; c < (lane < count ? d : 0); ++c) {
            score += q[at + c] * ks[lane][c];
            dp += dout[at + c] * vs[lane][c];
        }
        const float ds = expf(root * score - total) * (dp - dot) * root;
        for (int l = 0; l < count; ++l) {
            const float dsl = __shfl_sync(0xffffffff, ds, l);
#pragma unroll
            for (int e = 0; e < EACH; ++e)
                if (lane + 32 * e < d) dqi[e] += dsl * ks[l][lane + 32 * e];
        }
        __syncthreads();
    }
    if (i >= queries) return;
#pragma unroll
    for (int e = 0; e < EACH; ++e)
        if (lane + 32 * e < d) dq[at + lane + 32 * e] = dqi[e];
}
