// CUDA C++ as plain C++ on one CPU core: put in front of a kernel's text, it gives a meaning to every word that CUDA adds.
//
// A thread is a fiber: a stack of its own, left and entered with longjmp. A fiber runs until it waits (__syncthreads, a warp
// collective) or returns, then the next one runs; so the order of threads is ours to choose, and each run can be repeated.
//
// Every load and store of the kernel is seen: g++ -fsanitize=thread puts a call __tsan_read4(address) before each, and they
// land here instead of in its own library. access() holds the address against the arrays the kernel was given, and keeps for
// each word who wrote and who read it last: that is how bounds, uninitialised shared memory and races are found.
// g++ -fsanitize=undefined reports indices past fixed arrays, misaligned wide loads and overflows in the same way.
#pragma once
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static __attribute__((section("cu_shared")))    // one section: found and cleared as a whole
#define __constant__ static __attribute__((section("cu_builtin")))

struct uint3 { unsigned x, y, z; };
typedef uint3 dim3;

#define CU_BUILTIN static __attribute__((section("cu_builtin")))
CU_BUILTIN uint3 threadIdx = {}, blockIdx = {};
CU_BUILTIN dim3 blockDim = {}, gridDim = {};
CU_BUILTIN int warpSize = 32;

namespace cu {
#define CU_PLAIN __attribute__((no_sanitize("thread", "undefined")))  // the emulator does not watch itself

enum Kind { NONE, OUT_OF_BOUNDS, UNINITIALISED, RACE, DIVERGENCE, SHUFFLE, DEADLOCK, UNDEFINED };
enum Use { READ, WRITE, ATOMIC };
struct Place { uintptr_t pc; unsigned block, thread; int line, use; };             // line, or the code address to look it up
struct Fault { int kind; Place at, other; uintptr_t address; int region; unsigned a, b; char text[128]; };
struct Region { uintptr_t begin, end; };
struct Record { uintptr_t pc, address; unsigned block, thread; int line, use, size, region; };

// ---- faults and fibers

enum State { RUNS, AT_BARRIER, IN_WARP, RETURNED };
constexpr int THREADS = 1024, STACK = 128 << 10, WARP = 32, DYNAMIC = 227 << 10;
struct Fiber {
    jmp_buf at; ucontext_t start; char* stack; bool live; State state; int line;
    unsigned mask, epoch; int source; uint64_t given, got;                        // of a warp collective
};
static Fiber fibers[THREADS];
static jmp_buf scheduler;
static int current, threads;
static unsigned block, barriers;                                                  // index of the block; barriers it has passed
static bool watching;
static Fault fault;
alignas(16) static char dynamic_shared[DYNAMIC];
static void (*body)(void*);
static void* body_arguments;

CU_PLAIN inline void leave(State state, int line) {
    fibers[current].state = state; fibers[current].line = line;
    if (!_setjmp(fibers[current].at)) _longjmp(scheduler, 1);
}
CU_PLAIN inline void report(Kind kind, int line, uintptr_t pc) {
    if (fault.kind) return;
    fault.kind = kind; fault.at = {pc, block, (unsigned)current, line, READ};
}
CU_PLAIN inline void die() { leave(RETURNED, 0); abort(); }
CU_PLAIN static void begin() { for (;;) { body(body_arguments); leave(RETURNED, 0); } }
CU_PLAIN inline void resume(int t) {
    current = t; watching = true;
    if (_setjmp(scheduler)) { watching = false; return; }
    Fiber& f = fibers[t];
    if (f.live) _longjmp(f.at, 1);
    if (!f.stack) f.stack = (char*)malloc(STACK);
    getcontext(&f.start);
    f.start.uc_stack.ss_sp = f.stack; f.start.uc_stack.ss_size = STACK; f.start.uc_link = nullptr;
    makecontext(&f.start, begin, 0);
    f.live = true;
    setcontext(&f.start);
}

// ---- accesses

struct Seen { uintptr_t pc; unsigned block, thread, barriers, epoch; int line; uint8_t use, bytes; bool any; };
struct Word {                                                                     // who was here last
    Seen write, atomic, read[2];                                                  // two readers: of another block, if one was here
    unsigned filled_by; uint8_t filled;                                           // bytes written by block filled_by - 1
};
constexpr int REGIONS = 64;
static Region regions[REGIONS];                                                   // arrays, then static and dynamic shared memory
static Word* words[REGIONS];
static int region_count, static_shared, dynamic_region;
static Record* records; static size_t record_count, record_room;
extern "C" { extern char __start_cu_shared[] __attribute__((weak)), __stop_cu_shared[] __attribute__((weak));
             extern char __start_cu_builtin[] __attribute__((weak)), __stop_cu_builtin[] __attribute__((weak)); }

CU_PLAIN inline bool ordered(const Seen& a, const Seen& b) {                      // can a and b not happen at the same time?
    if (a.block != b.block) return false;
    return a.thread == b.thread || a.barriers != b.barriers || (a.thread / WARP == b.thread / WARP && a.epoch != b.epoch);
}
CU_PLAIN inline bool clash(const Seen& a, const Seen& b) {
    return a.any && (a.bytes & b.bytes) && !ordered(a, b) && !(a.use == ATOMIC && b.use == ATOMIC);
}
CU_PLAIN inline void note(Word& w, const Seen& me) {
    const Seen* other = clash(w.write, me) ? &w.write : clash(w.atomic, me) ? &w.atomic : nullptr;
    if (me.use != READ) for (const Seen& r : w.read) if (clash(r, me)) other = &r;
    if (other && !fault.kind) {
        report(RACE, me.line, me.pc);
        fault.at.use = me.use;
        fault.other = {other->pc, other->block, other->thread, other->line, other->use};
    }
    if (me.use == WRITE) w.write = me;
    else if (me.use == ATOMIC) w.atomic = me;
    else {
        const bool same_block = w.read[0].block == me.block, far = w.read[1].any && w.read[1].block != me.block;
        if (w.read[0].any && !(same_block && (far || w.read[0].thread == me.thread))) w.read[1] = w.read[0];
        w.read[0] = me;
    }
}
CU_PLAIN __attribute__((noinline)) void access(const void* p, int size, Use use, int line, uintptr_t pc) {
    const uintptr_t a = (uintptr_t)p, stack = (uintptr_t)fibers[current].stack;
    if (!watching || a - stack < STACK) return;                                   // its own local variables
    if (a >= (uintptr_t)__start_cu_builtin && a < (uintptr_t)__stop_cu_builtin) return;
    int k = 0;
    while (k < region_count && !(a >= regions[k].begin && a + size <= regions[k].end)) ++k;
    if (k == region_count) {
        report(OUT_OF_BOUNDS, line, pc);
        fault.at.use = use; fault.address = a; fault.a = size;
        die();
    }
    if (record_room && record_count < record_room)
        records[record_count++] = {pc, a, block, (unsigned)current, line, use, size, k};
    const bool shared = k >= static_shared;
    Seen me = {pc, block, (unsigned)current, barriers, fibers[current].epoch, line, (uint8_t)use, 0, true};
    for (uintptr_t q = a & ~3ull; q < a + size; q += 4) {
        Word& w = words[k][(q >> 2) - (regions[k].begin >> 2)];
        const int from = q < a ? a - q : 0, to = q + 4 > a + size ? a + size - q : 4;
        me.bytes = (0xF << from) & (0xF >> (4 - to));
        if (shared) {
            if (w.filled_by != block + 1) { w = {}; w.filled_by = block + 1; }     // a block's shared memory is its own
            if (use != WRITE && (w.filled & me.bytes) != me.bytes) report(UNINITIALISED, line, pc), fault.at.use = use;
            if (use != READ) w.filled |= me.bytes;
        }
        note(w, me);
        if (fault.kind) { fault.address = a; fault.region = k; fault.a = size; die(); }
    }
}

// float4 and its like are loaded and stored as a whole, as on a GPU; the compiler would take them apart.
template <class T, int N> struct Components;
template <class T> struct Components<T, 2> { T x = 0, y = 0; };
template <class T> struct Components<T, 4> { T x = 0, y = 0, z = 0, w = 0; };
template <class T, int N> struct alignas(sizeof(T) * N) Vector : Components<T, N> {
    CU_PLAIN Vector() {}
    template <class... U> CU_PLAIN Vector(T x, U... rest) : Components<T, N>{x, (T)rest...} {}
    CU_PLAIN __attribute__((noinline)) Vector(const Vector& v) {
        access(&v, sizeof v, READ, 0, (uintptr_t)__builtin_return_address(0));
        memcpy((void*)this, &v, sizeof v);
    }
    CU_PLAIN __attribute__((noinline)) Vector& operator=(const Vector& v) {
        access(&v, sizeof v, READ, 0, (uintptr_t)__builtin_return_address(0));
        access(this, sizeof v, WRITE, 0, (uintptr_t)__builtin_return_address(0));
        memcpy((void*)this, &v, sizeof v);
        return *this;
    }
};

// ---- waiting for each other

CU_PLAIN inline int lanes_of(int warp) { return threads - warp * WARP < WARP ? threads - warp * WARP : WARP; }
CU_PLAIN inline void bad_shuffle(int line, const char* text, unsigned a, unsigned b) {
    report(SHUFFLE, line, 0);
    snprintf(fault.text, sizeof fault.text, text, a, b);
    die();
}
// All lanes of the mask meet here; the last to arrive hands each the value of the lane it asked for.
CU_PLAIN inline uint64_t collective(unsigned mask, uint64_t value, int source, bool orders_memory, int line) {
    const int lane = current % WARP, first = current - lane;
    Fiber& me = fibers[current];
    if (!(mask >> lane & 1)) bad_shuffle(line, "lane %u is not in its own mask %08x", lane, mask);
    if (source >= 0 && !(mask >> source & 1)) bad_shuffle(line, "reads lane %u, which is not in the mask %08x", source, mask);
    me.mask = mask; me.given = value; me.source = source;
    for (int l = 0; l < WARP; ++l) if (mask >> l & 1) {
        if (first + l >= threads) bad_shuffle(line, "mask %08x names lane %u, which the block does not have", mask, l);
        const Fiber& f = fibers[first + l];
        if (f.state == RETURNED) bad_shuffle(line, "mask %08x names lane %u, which has returned", mask, l);
        if (l != lane && f.state == IN_WARP && (f.mask != mask || f.line != line) && (f.mask >> lane & 1))
            bad_shuffle(line, "lane %u waits in another collective (line %u)", l, f.line);
    }
    for (int l = 0; l < WARP; ++l) if ((mask >> l & 1) && l != lane) {
        const Fiber& f = fibers[first + l];
        if (!(f.state == IN_WARP && f.mask == mask && f.line == line)) { leave(IN_WARP, line); return me.got; }
    }
    for (int l = 0; l < WARP; ++l) if (mask >> l & 1) {
        Fiber& f = fibers[first + l];
        f.got = fibers[first + (f.source < 0 ? l : f.source)].given;
        f.state = RUNS;
        f.epoch += orders_memory;
    }
    return me.got;
}
template <class T> CU_PLAIN inline T shuffle(int line, unsigned mask, T value, int source) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = collective(mask, bits, source, false, line);
    memcpy(&value, &bits, sizeof value);
    return value;
}
CU_PLAIN inline unsigned ballot(int line, unsigned mask, bool yes) {
    unsigned votes = 0;
    for (int l = 0; l < WARP; ++l) if (mask >> l & 1) votes |= (unsigned)(collective(mask, yes, l, false, line) & 1) << l;
    return votes;
}

// ---- a launch

CU_PLAIN inline void shuffle_order(int* order, int n, int how, uint64_t& state) {
    for (int i = 0; i < n; ++i) order[i] = how == 1 ? n - 1 - i : i;
    for (int i = n - 1; how > 1 && i > 0; --i) {
        state ^= state << 13; state ^= state >> 7; state ^= state << 17;
        const int j = state % (i + 1), t = order[i];
        order[i] = order[j]; order[j] = t;
    }
}
CU_PLAIN inline void check_waiting() {                                            // nobody runs: is that a barrier, or a fault?
    int waiting = 0, first = -1, returned = -1, alive = 0;
    for (int t = 0; t < threads; ++t) {
        const State s = fibers[t].state;
        if (s == RETURNED) { if (returned < 0) returned = t; continue; }
        ++alive;
        if (s == IN_WARP) {
            current = t;
            for (int l = 0; l < WARP; ++l)
                if ((fibers[t].mask >> l & 1) && fibers[t - t % WARP + l].state == RETURNED) {
                    report(SHUFFLE, fibers[t].line, 0);
                    snprintf(fault.text, sizeof fault.text, "mask %08x names lane %d, which has returned", fibers[t].mask, l);
                    return;
                }
            report(DEADLOCK, fibers[t].line, 0);
            fault.a = fibers[t].mask;
            return;
        }
        if (first >= 0 && fibers[t].line != fibers[first].line) {
            current = t;
            report(DIVERGENCE, fibers[t].line, 0);
            fault.a = fibers[first].line; fault.b = first;
            return;
        }
        if (first < 0) first = t;
        ++waiting;
    }
    if (alive && returned >= 0) {
        current = returned;
        report(DIVERGENCE, fibers[first].line, 0);
        fault.a = 0; fault.b = threads - alive;
    }
}
CU_PLAIN inline void run_block(const uint3* index, const int* order) {
    for (int t = 0; t < threads; ++t) { fibers[t].state = RUNS; fibers[t].epoch = 0; }
    barriers = 0;
    for (bool alive = true; alive && !fault.kind;) {
        bool moved = false;
        for (int q = 0; q < threads && !fault.kind; ++q)
            if (fibers[order[q]].state == RUNS) { threadIdx = index[order[q]]; resume(order[q]); moved = true; }
        if (fault.kind) break;
        alive = false;
        bool all_wait = true;
        for (int t = 0; t < threads; ++t) { alive |= fibers[t].state != RETURNED; all_wait &= fibers[t].state != RUNS; }
        if (!alive || (moved && !all_wait)) continue;
        check_waiting();
        ++barriers;
        for (int t = 0; t < threads; ++t) if (fibers[t].state == AT_BARRIER) fibers[t].state = RUNS;
    }
    if (fault.kind) for (int t = 0; t < threads; ++t) fibers[t].live = false;     // what their stacks held is dropped
}
template <class... P> struct Call {
    void (*kernel)(P...); void** arguments;
    template <size_t... I> CU_PLAIN static void go(Call* c, std::index_sequence<I...>) {
        c->kernel(*(std::remove_cv_t<P>*)c->arguments[I]...);
    }
    CU_PLAIN static void run(void* self) { go((Call*)self, std::index_sequence_for<P...>()); }
};
template <class... P> CU_PLAIN const Fault* launch(void (*kernel)(P...), const unsigned* grid, const unsigned* shape,
        unsigned shared_bytes, int how, void** arguments, const Region* arrays, int array_count, Record* room, size_t rooms) {
    fault = {}; records = room; record_room = rooms; record_count = 0;
    region_count = 0;
    for (int k = 0; k < array_count; ++k) regions[region_count++] = arrays[k];
    static_shared = region_count;
    regions[region_count++] = {(uintptr_t)__start_cu_shared, (uintptr_t)__stop_cu_shared};
    regions[region_count++] = {(uintptr_t)dynamic_shared, (uintptr_t)dynamic_shared + shared_bytes};
    for (int k = 0; k < region_count; ++k)
        words[k] = (Word*)calloc((regions[k].end - regions[k].begin) / 4 + 2, sizeof(Word));
    gridDim = {grid[0], grid[1], grid[2]}; blockDim = {shape[0], shape[1], shape[2]};
    threads = shape[0] * shape[1] * shape[2];
    Call<P...> call{kernel, arguments};
    body = Call<P...>::run; body_arguments = &call;
    static uint3 index[THREADS]; static int order[THREADS];
    for (unsigned t = 0; t < (unsigned)threads; ++t)
        index[t] = {t % shape[0], t / shape[0] % shape[1], t / shape[0] / shape[1]};
    uint64_t state = 0x9E3779B97F4A7C15ull * (how + 1);
    const unsigned blocks = grid[0] * grid[1] * grid[2];
    int* block_order = (int*)malloc(blocks * sizeof(int));
    shuffle_order(block_order, blocks, how, state);
    for (unsigned q = 0; q < blocks && !fault.kind; ++q) {
        block = block_order[q];
        blockIdx = {block % grid[0], block / grid[0] % grid[1], block / grid[0] / grid[1]};
        shuffle_order(order, threads, how, state);
        run_block(index, order);
    }
    for (int k = 0; k < region_count; ++k) free(words[k]);
    free(block_order);
    return &fault;
}
} // namespace cu

#define CU_VECTOR(T, name)                                                                        \
    typedef cu::Vector<T, 2> name##2; typedef cu::Vector<T, 4> name##4;                           \
    CU_PLAIN static inline name##2 make_##name##2(T x, T y) { return name##2(x, y); }             \
    CU_PLAIN static inline name##4 make_##name##4(T x, T y, T z, T w) { return name##4(x, y, z, w); }
CU_VECTOR(float, float) CU_VECTOR(int, int) CU_VECTOR(unsigned, uint) CU_VECTOR(unsigned char, uchar)

#define CU_KERNEL(name) extern "C" const cu::Fault* cu_launch_##name(const unsigned* grid, const unsigned* shape,               \
        unsigned shared_bytes, int order, void** arguments, const cu::Region* arrays, int array_count, cu::Record* room, size_t rooms) { \
        return cu::launch(::name, grid, shape, shared_bytes, order, arguments, arrays, array_count, room, rooms); }
extern "C" inline size_t cu_record_count() { return cu::record_count; }
__attribute__((used)) static size_t (*cu_keep)() = cu_record_count;

// ---- what the compiler calls

#define CU_HERE (uintptr_t)__builtin_return_address(0)
#define CU_HOOK(n)                                                                                                  \
    CU_PLAIN void __tsan_read##n(void* p) { cu::access(p, n, cu::READ, 0, CU_HERE); }                               \
    CU_PLAIN void __tsan_write##n(void* p) { cu::access(p, n, cu::WRITE, 0, CU_HERE); }                             \
    CU_PLAIN void __tsan_unaligned_read##n(void* p) { cu::access(p, n, cu::READ, 0, CU_HERE); }                     \
    CU_PLAIN void __tsan_unaligned_write##n(void* p) { cu::access(p, n, cu::WRITE, 0, CU_HERE); }
extern "C" {
CU_HOOK(1) CU_HOOK(2) CU_HOOK(4) CU_HOOK(8) CU_HOOK(16)
CU_PLAIN void __tsan_read_range(void* p, size_t n) { cu::access(p, n, cu::READ, 0, CU_HERE); }
CU_PLAIN void __tsan_write_range(void* p, size_t n) { cu::access(p, n, cu::WRITE, 0, CU_HERE); }
CU_PLAIN void __tsan_func_entry(void*) {}
CU_PLAIN void __tsan_func_exit() {}
CU_PLAIN void __tsan_init() {}
struct CuSource { const char* file; unsigned line, column; };
#define CU_UNDEFINED(name, words, ...) CU_PLAIN void __ubsan_handle_##name(CuSource* at, ##__VA_ARGS__) { \
    cu::report(cu::UNDEFINED, at->line, 0); strncpy(cu::fault.text, words, sizeof cu::fault.text - 1); cu::die(); }
CU_UNDEFINED(out_of_bounds, "an index past the end of a fixed array", void*)
struct CuMismatch { CuSource at; void* type; unsigned char alignment, use; };
CU_PLAIN void __ubsan_handle_type_mismatch_v1(CuMismatch* m, uintptr_t p) {
    const unsigned multiple = 1u << m->alignment;                                 // 1: it is the end of an array that was passed
    cu::report(p && p % multiple == 0 ? cu::OUT_OF_BOUNDS : cu::UNDEFINED, m->at.line, 0);
    cu::fault.at.use = m->use == cu::WRITE; cu::fault.address = p; cu::fault.a = 4;
    if (p) snprintf(cu::fault.text, sizeof cu::fault.text, "an address that is no multiple of %u bytes", multiple);
    else strcpy(cu::fault.text, "a null pointer");
    cu::die();
}
CU_UNDEFINED(shift_out_of_bounds, "a shift by more bits than there are", void*, void*)
CU_UNDEFINED(divrem_overflow, "a division by zero, or of the lowest integer by -1", void*, void*)
CU_UNDEFINED(add_overflow, "an integer sum that overflows", void*, void*)
CU_UNDEFINED(sub_overflow, "an integer difference that overflows", void*, void*)
CU_UNDEFINED(mul_overflow, "an integer product that overflows", void*, void*)
CU_UNDEFINED(negate_overflow, "an integer that overflows when negated", void*)
CU_UNDEFINED(float_cast_overflow, "a float that does not fit the integer it is cast to", void*)
CU_UNDEFINED(pointer_overflow, "a pointer that wraps around", void*, void*)
CU_UNDEFINED(vla_bound_not_positive, "an array of no positive length", void*)
CU_UNDEFINED(load_invalid_value, "a bool that is neither true nor false", void*)
CU_UNDEFINED(nonnull_arg, "a null pointer where none may be")
CU_UNDEFINED(missing_return, "a function that ends without its return")
}

// ---- what a kernel calls

#define __syncthreads() cu::leave(cu::AT_BARRIER, __LINE__)
#define __syncwarp(...) ((void)cu::collective(__VA_OPT__((unsigned)(__VA_ARGS__)) __VA_OPT__(&) 0xffffffffu, 0, -1, true, __LINE__))
#define CU_LANE (cu::current % cu::WARP)
CU_PLAIN static inline int cu_source_down(int by, int width) { const int l = CU_LANE; return (l & (width - 1)) + by < width ? l + by : -1; }
CU_PLAIN static inline int cu_source_up(int by, int width) { const int l = CU_LANE; return (l & (width - 1)) >= by ? l - by : -1; }
CU_PLAIN static inline int cu_source_xor(int by, int width) { const int l = CU_LANE; return (l ^ by) < (l & ~(width - 1)) + width ? l ^ by : -1; }
CU_PLAIN static inline int cu_source_lane(int of, int width) { return (CU_LANE & ~(width - 1)) + (of & (width - 1)); }
#define CU_SHUFFLE(name) template <class T> CU_PLAIN inline T cu_shuffle_##name(int line, unsigned mask, T value, int by, int width = 32) \
    { return cu::shuffle(line, mask, value, cu_source_##name(by, width)); }
CU_SHUFFLE(down) CU_SHUFFLE(up) CU_SHUFFLE(xor) CU_SHUFFLE(lane)
#define __shfl_down_sync(...) cu_shuffle_down(__LINE__, __VA_ARGS__)
#define __shfl_up_sync(...) cu_shuffle_up(__LINE__, __VA_ARGS__)
#define __shfl_xor_sync(...) cu_shuffle_xor(__LINE__, __VA_ARGS__)
#define __shfl_sync(...) cu_shuffle_lane(__LINE__, __VA_ARGS__)
#define __ballot_sync(mask, yes) cu::ballot(__LINE__, mask, yes)
#define __any_sync(mask, yes) (cu::ballot(__LINE__, mask, yes) != 0)
#define __all_sync(mask, yes) (cu::ballot(__LINE__, mask, yes) == (unsigned)(mask))
#define __threadfence() ((void)0)
#define __threadfence_block() ((void)0)

#define CU_ATOMIC(name, arguments, change) template <class T, class U> CU_PLAIN inline T cu_##name arguments { \
    cu::access(p, sizeof *p, cu::ATOMIC, line, 0); const T old = *p; change; return old; }
CU_ATOMIC(atomicAdd, (int line, T* p, U v), *p = old + (T)v)
CU_ATOMIC(atomicMax, (int line, T* p, U v), if ((T)v > old) *p = (T)v)
CU_ATOMIC(atomicMin, (int line, T* p, U v), if ((T)v < old) *p = (T)v)
CU_ATOMIC(atomicExch, (int line, T* p, U v), *p = (T)v)
CU_ATOMIC(atomicCAS, (int line, T* p, U expected, U v), if (old == (T)expected) *p = (T)v)
#define atomicAdd(...) cu_atomicAdd(__LINE__, __VA_ARGS__)
#define atomicMax(...) cu_atomicMax(__LINE__, __VA_ARGS__)
#define atomicMin(...) cu_atomicMin(__LINE__, __VA_ARGS__)
#define atomicExch(...) cu_atomicExch(__LINE__, __VA_ARGS__)
#define atomicCAS(...) cu_atomicCAS(__LINE__, __VA_ARGS__)

template <class A, class B> inline auto min(A a, B b) -> std::common_type_t<A, B> { return a < b ? a : b; }
template <class A, class B> inline auto max(A a, B b) -> std::common_type_t<A, B> { return a > b ? a : b; }
template <class T> inline T __ldg(const T* p) { return *p; }
static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline int __ffs(int v) { return __builtin_ffs(v); }
static inline int __clz(int v) { return v ? __builtin_clz(v) : 32; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __fdividef(float a, float b) { return a / b; }
#define __expf expf
#define __logf logf
