// adamw, rung 0: a thread per element.
// m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, p = decay p - step m / (sqrt(v) / root + eps), with decay = 1 - lr wd,
// step = lr / (1 - b1^t), root = sqrt(1 - b2^t), c1 = 1 - b1, c2 = 1 - b2. One kernel reads and writes each array once.
// Bytes: 28 an element. Operations: 12.

extern "C" __global__ void adamw(float* p, const float* g, float* m, float* v, long long count,
                                 float b1, float b2, float c1, float c2, float eps, float decay, float step, float root) {
    const long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= count) return;
    m[k] = b1 * m[k] + c1 * g[k];
    v[k] = b2 * v[k] + c2 * g[k] * g[k];
    p[k] = decay * p[k] - step * m[k] / (sqrtf(v[k]) / root + eps);
}
