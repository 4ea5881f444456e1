// adamw, rung 1: four elements a thread, 16 bytes at a time.
// Seven streams of bytes and hardly any arithmetic: wide loads and stores keep more of them under way.
// Bytes and operations as before.

__device__ void update(float& p, float g, float& m, float& v,
                       float b1, float b2, float c1, float c2, float eps, float decay, float step, float root) {
    m = b1 * m + c1 * g;
    v = b2 * v + c2 * g * g;
    p = decay * p - step * m / (sqrtf(v) / root + eps);
}

extern "C" __global__ void adamw(float* p, const float* g, float* m, float* v, long long count,
                                 float b1, float b2, float c1, float c2, float eps, float decay, float step, float root) {
    const long long k = 4 * ((long long)blockIdx.x * blockDim.x + threadIdx.x);
    if (k + 4 <= count) {
        float4 p4 = *(float4*)(p + k), m4 = *(float4*)(m + k), v4 = *(float4*)(v + k);
        const float4 g4 = *(const float4*)(g + k);
        update(p4.x, g4.x, m4.x, v4.x, b1, b2, c1, c2, eps, decay, step, root);
        update(p4.y, g4.y, m4.y, v4.y, b1, b2, c1, c2, eps, decay, step, root);
        update(p4.z, g4.z, m4.z, v4.z, b1, b2, c1, c2, eps, decay, step, root);
        update(p4.w, g4.w, m4.w, v4.w, b1, b2, c1, c2, eps, decay, step, root);
        *(float4*)(p + k) = p4;
        *(float4*)(m + k) = m4;
        *(float4*)(v + k) = v4;
    } else {
        for (long long last = k; last < count; ++last)
            update(p[last], g[last], m[last], v[last], b1, b2, c1, c2, eps, decay, step, root);
    }
}
