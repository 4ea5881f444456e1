// adam8bit, rung 1: a thread per element, a block per block.
// 256 threads keep their moments in registers and find the two largest together, by shuffles and shared memory; then each encodes
// its own. The tables are read in no order at all, so the block copies them into shared memory first.
// Bytes: 4 an element for the moments, 12 for p and g, all side by side. Operations: 25, and two searches of 8
// steps.

#define BLOCK 256

// The place of the number nearest to x in a sorted table of 256; what is below 0 stays so.
__device__ int nearest(const float* table, float x) {
    int low = 0, high = 255;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (table[middle] <= x) low = middle; else high = middle;
    }
    const bool lower = x - table[low] <= table[high] - x || (x < 0 && table[high] == 0);
    return lower ? low : high;
}

__device__ float block_max(float x, float* tops) {  // of all threads; tops: one word for each warp
    for (int distance = 16; distance > 0; distance /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, distance));
    if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = x;
    __syncthreads();
    for (int warp = 0; warp < BLOCK / 32; ++warp)
        x = fmaxf(x, tops[warp]);
    return x;
}

extern "C" __global__ void __launch_bounds__(BLOCK) adam8bit(float* p, const float* g, unsigned char* m, unsigned char* v,
        float* m_top, float* v_top, const float* signed_table, const float* unsigned_table, int count,
        float b1, float b2, float c1, float c2, float eps, float decay, float step, float root) {
    __shared__ float m_table[BLOCK], v_table[BLOCK], m_tops[BLOCK / 32], v_tops[BLOCK / 32];
    const int block = blockIdx.x, k = block * BLOCK + threadIdx.x;
    m_table[threadIdx.x] = signed_table[threadIdx.x];
    v_table[threadIdx.x] = unsigned_table[threadIdx.x];
    __syncthreads();
    float mk = 0, vk = 0;
    if (k < count) {
        mk = b1 * m_table[m[k]] * m_top[block] + c1 * g[k];
        vk = b2 * v_table[v[k]] * v_top[block] + c2 * g[k] * g[k];
        p[k] = decay * p[k] - step * mk / (sqrtf(vk) / root + eps);
    }
    const float m_new = block_max(fabsf(mk), m_tops), v_new = block_max(vk, v_tops);  // the barrier: m_top was read by all
    if (k < count) {
        m[k] = nearest(m_table, m_new > 0 ? mk / m_new : 0);
        v[k] = nearest(v_table, v_new > 0 ? vk / v_new : 0);
    }
    if (threadIdx.x == 0) m_top[block] = m_new;
    if (threadIdx.x == 1) v_top[block] = v_new;
}
