// adam8bit, rung 0: a thread per block of 256 elements.
// The moments are kept as 8-bit codes: a code is a place in a table of 256 numbers between -1 and 1 (for v between 0 and 1),
// times the largest magnitude among the 256. A thread decodes them one by one, updates p, and finds the new largest; then it does
// it all again, since only now it can encode.
// Bytes: 4 an element for the moments instead of 16, 12 for p and g. Operations: 25, twice, and two searches of 8 steps.

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

extern "C" __global__ void adam8bit(float* p, const float* g, unsigned char* m, unsigned char* v, float* m_top, float* v_top,
                                    const float* signed_table, const float* unsigned_table, int count,
                                    float b1, float b2, float c1, float c2, float eps, float decay, float step, float root) {
    const int block = blockIdx.x * blockDim.x + threadIdx.x, from = block * BLOCK, to = min(count, from + BLOCK);
    if (from >= count) return;
    float m_new = 0, v_new = 0;
    for (int k = from; k < to; ++k) {
        m_new = fmaxf(m_new, fabsf(b1 * signed_table[m[k]] * m_top[block] + c1 * g[k]));
        v_new = fmaxf(v_new, b2 * unsigned_table[v[k]] * v_top[block] + c2 * g[k] * g[k]);
    }
    for (int k = from; k < to; ++k) {
        const float mk = b1 * signed_table[m[k]] * m_top[block] + c1 * g[k];
        const float vk = b2 * unsigned_table[v[k]] * v_top[block] + c2 * g[k] * g[k];
        p[k] = decay * p[k] - step * mk / (sqrtf(vk) / root + eps);
        m[k] = nearest(signed_table, m_new > 0 ? mk / m_new : 0);
        v[k] = nearest(unsigned_table, v_new > 0 ? vk / v_new : 0);
    }
    m_top[block] = m_new;
    v_top[block] = v_new;
}
