// swiglu, rung 1: four elements a thread, 16 bytes at a time.
// All the time goes into moving bytes, so each request should carry many: a quarter of the loads and stores, of four times the
// width. What is left over at the end, up to three elements, goes one by one.
// Bytes and operations as before.

__device__ float silu(float a) { return a / (1 + expf(-a)); }

__device__ float dsilu(float a) {
    const float s = 1 / (1 + expf(-a));
    return s * (1 + a * (1 - s));
}

extern "C" __global__ void swiglu(const float* a, const float* b, float* y, long long count) {
    const long long k = 4 * ((long long)blockIdx.x * blockDim.x + threadIdx.x);
    if (k + 4 <= count) {
        const float4 p = *(const float4*)(a + k), q = *(const float4*)(b + k);
        *(float4*)(y + k) = make_float4(silu(p.x) * q.x, silu(p.y) * q.y, silu(p.z) * q.z, silu(p.w) * q.w);
    } else {
        for (long long last = k; last < count; ++last)
            y[last] = silu(a[last]) * b[last];
    }
}

extern "C" __global__ void swiglu_backward(const float* dy, const float* a, const float* b, float* da, float* db,
                                           long long count) {
    const long long k = 4 * ((long long)blockIdx.x * blockDim.x + threadIdx.x);
    if (k + 4 <= count) {
        const float4 g = *(const float4*)(dy + k), p = *(const float4*)(a + k), q = *(const float4*)(b + k);
        *(float4*)(db + k) = make_float4(g.x * silu(p.x), g.y * silu(p.y), g.z * silu(p.z), g.w * silu(p.w));
        *(float4*)(da + k) = make_float4(g.x * q.x * dsilu(p.x), g.y * q.y * dsilu(p.y),
                                         g.z * q.z * dsilu(p.z), g.w * q.w * dsilu(p.w));
    } else {
        for (long long last = k; last < count; ++last) {
            db[last] = dy[last] * silu(a[last]);
            da[last] = dy[last] * b[last] * dsilu(a[last]);
        }
    }
}
