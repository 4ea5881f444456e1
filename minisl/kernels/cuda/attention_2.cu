// attention, rung 2: tiles of 32 keys and values in shared memory.
// The 8 queries of a block need the same keys: copied once, side by side, they serve all 8. A row of the tile has one word more
// than a head, so the 32 threads that each read a row of it meet 32 banks. A warp past the last query stays, to help and to wait.
// Bytes: K and V once for 8 queries, 1 d a pair of positions. Operations: as before.

#define LOWEST -3.4028235e38f  // of all floats; exp of the distance to it is 0
#define EACH 4                 // components of a thread, so a head has at most 128
#define WARPS 8

extern "C" __global__ void __launch_bounds__(32 * WARPS) attention(const float* q, const float* k, const float* v, float* o,
        float* logsumexp, int heads, int kv_heads, int queries, int keys, int d, float root,
        long long qb, long long qh, long long qt, long long kb, long long kh, long long kt) {  // strides: batch, head, position
    __shared__ float ks[32][32 * EACH + 1], vs[32][32 * EACH + 1];
    const int i = blockIdx.x * WARPS + threadIdx.y, h = blockIdx.y, b = blockIdx.z, lane = threadIdx.x;
    const size_t at = b * qb + h * qh + min(i, queries - 1) * qt, kv = b * kb + h / (heads / kv_heads) * kh;
    float highest = LOWEST, sum = 0, oi[EACH] = {};
    for (int first = 0; first < min(keys, (int)(blockIdx.x + 1) * WARPS + keys - queries); first += 32) {
        for (int t = threadIdx.y; t < min(32, keys - first); t += WARPS)
            for (int c = lane; c < d; c += 32) {
                ks[t][c] = k[kv + (first + t) * kt + c];
                vs[t][c] = v[kv + (first + t) * kt + c];
            }
        __syncthreads();
        const int count = min(32, min(i, queries - 1) + keys - queries + 1 - first);  // below 1: this query is done
        float score = 0;
#pragma unroll 8
        for (int c = 0; c < (lane < count ? d : 0); ++c)
            score += q[at + c] * ks[lane][c];
        score = lane < count ? score * root : LOWEST;
        float top = fmaxf(highest, score);
        for (int distance = 16; distance > 0; distance /= 2)
            top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, distance));
        const float shrink = expf(highest - top), p = expf(score - top);
        for (int e = 0; e < EACH; ++e)
            oi[e] *= shrink;
        sum *= shrink;
        for (int l = 0; l < count; ++l) {
            const float pl = __shfl_sync(0xffffffff, p, l);
#pragma unroll
            for (int e = 0; e < EACH; ++e)
                if (lane + 32 * e < d) oi[e] += pl * vs[l][lane + 32 * e];
            sum += pl;
        }
        highest = top;
        __syncthreads();
    }
    if (i >= queries) return;
#pragma unroll
    for (int e = 0; e < EACH; ++e)
        if (lane + 32 * e < d) o[at + lane + 32 * e] = oi[e] / sum;
    if (lane == 0) logsumexp[(b * heads + h) * queries + i] = highest + logf(sum);
}
