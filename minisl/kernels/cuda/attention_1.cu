// attention, rung 1: a warp per query.
// 32 keys at a time: first a thread has a key, and shuffles find the highest of their scores. Then a thread has every
// 32nd component of O, in registers, and each P_ij comes to it by a shuffle. Heads of up to 128 components.
// Bytes: K and V for every query, V side by side, O once. Operations: as before, and 37 shuffles for 32 keys.

#define LOWEST -3.4028235e38f  // of all floats; exp of the distance to it is 0
#define EACH 4                 // components of a thread, so a head has at most 128

extern "C" __global__ void attention(const float* q, const float* k, const float* v, float* o, float* logsumexp,
        int heads, int kv_heads, int queries, int keys, int d, float root,
        long long qb, long long qh, long long qt, long long kb, long long kh, long long kt) {  // strides: batch, head, position
    const int i = blockIdx.x * blockDim.y + threadIdx.y, h = blockIdx.y, b = blockIdx.z, lane = threadIdx.x;
    if (i >= queries) return;
    const size_t at = b * qb + h * qh + i * qt, kv = b * kb + h / (heads / kv_heads) * kh;
    float highest = LOWEST, sum = 0, oi[EACH] = {};
    for (int first = 0; first <= i + keys - queries; first += 32) {
        const int j = first + lane, count = min(32, i + keys - queries + 1 - first);
        float score = 0;
        for (int c = 0; c < d && lane < count; ++c)
            score += q[at + c] * k[kv + j * kt + c];
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
                if (lane + 32 * e < d) oi[e] += pl * v[kv + (first + l) * kt + lane + 32 * e];
            sum += pl;
        }
        highest = top;
    }
#pragma unroll
    for (int e = 0; e < EACH; ++e)
        if (lane + 32 * e < d) o[at + lane + 32 * e] = oi[e] / sum;
    if (lane == 0) logsumexp[(b * heads + h) * queries + i] = highest + logf(sum);
}
