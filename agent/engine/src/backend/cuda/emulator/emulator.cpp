// Runs kernels on the CPU, for tests: block after block, each thread of a block a fiber that is switched away from where it waits for others. What is wrong with
// how threads wait is found: a barrier that some threads of a block, or of a warp, never come to is an error. Warps and lanes take turns from the first to the
// last in one block and from the last to the first in the next, and shared memory begins as numbers that are none, so that what is read before it is written, or
// before all have met, is likely to show.

#include "cuda_shim.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulated {
namespace {

const size_t STACK_BYTES = 128 << 10;
const size_t SHARED_BYTES = 48 << 10;
const unsigned MOST_THREADS = 1024;

struct Entry {
    size_t argument_bytes;
    unsigned threads;
    void (*run)(const void *);
};

std::map<std::string, Entry> &kernels() {
    static std::map<std::string, Entry> kernels;
    return kernels;
}

// What a fiber waits for.
enum class State { Running, Warp, Block, Ended };

struct Fiber {
    Thread thread;
    State state;
    unsigned exchanges;
#if defined(__x86_64__)
    void *stack_pointer;
#else
    ucontext_t context;
#endif
};

// A block under way, on one thread of the system.
struct Machine {
    std::vector<Fiber> fibers{MOST_THREADS};
    // What threads bring for each other, in two places by turns: whoever brings something again has met all who have read the last but one.
    std::vector<uint32_t> words[2] = {std::vector<uint32_t>(MOST_THREADS), std::vector<uint32_t>(MOST_THREADS)};
    std::vector<Fragments> fragments[2] = {std::vector<Fragments>(MOST_THREADS), std::vector<Fragments>(MOST_THREADS)};
    char *stacks;
    alignas(16) char shared[SHARED_BYTES];
    Fiber *running = nullptr;
#if defined(__x86_64__)
    void *scheduler = nullptr;
#else
    ucontext_t scheduler;
#endif
    void (*run)(const void *);
    const void *arguments;
    bool ready = true;

    Machine() {
        size_t bytes = STACK_BYTES * MOST_THREADS;
        void *mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        ready = mapped != MAP_FAILED;
        stacks = static_cast<char *>(mapped);
    }
    ~Machine() {
        if (ready) munmap(stacks, STACK_BYTES * MOST_THREADS);
    }
};

thread_local Machine *machine = nullptr;

#if defined(__x86_64__)
// Keeps what a function must keep on the stack of one fiber, and goes on with another.
extern "C" void stowage_emulator_switch(void **from, void *to);
asm(R"(
.text
.local stowage_emulator_switch
.type stowage_emulator_switch, @function
stowage_emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size stowage_emulator_switch, .-stowage_emulator_switch
)");
#endif

void leave(State state) {
    Fiber *fiber = machine->running;
    fiber->state = state;
#if defined(__x86_64__)
    stowage_emulator_switch(&fiber->stack_pointer, machine->scheduler);
#else
    swapcontext(&fiber->context, &machine->scheduler);
#endif
}

void enter(Fiber &fiber) {
    machine->running = &fiber;
    fiber.state = State::Running;
#if defined(__x86_64__)
    stowage_emulator_switch(&machine->scheduler, fiber.stack_pointer);
#else
    swapcontext(&machine->scheduler, &fiber.context);
#endif
}

void live() {
    machine->run(machine->arguments);
    leave(State::Ended);
}

void prepare(Fiber &fiber, unsigned index) {
    char *stack = machine->stacks + STACK_BYTES * index;
#if defined(__x86_64__)
    // As if `live` had been called: six registers, where to go on, and nowhere to return to, which lies 8 bytes off a multiple of 16.
    void **top = reinterpret_cast<void **>(stack + STACK_BYTES) - 3;
    top[0] = nullptr;
    top[-1] = reinterpret_cast<void *>(&live);
    for (int i = 2; i < 8; i++) top[-i] = nullptr;
    fiber.stack_pointer = top - 7;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = STACK_BYTES;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, live, 0);
#endif
}

// Lets the threads of a warp go on until all of them wait for the block or have ended. An error says that some wait for others that do not come.
const char *run_warp(unsigned first, unsigned count, bool backwards) {
    Fiber *fibers = &machine->fibers[first];
    for (;;) {
        unsigned at_warp = 0, at_block = 0, ended = 0;
        for (unsigned i = 0; i < count; i++) {
            Fiber &fiber = fibers[backwards ? count - 1 - i : i];
            if (fiber.state == State::Warp || fiber.state == State::Running) enter(fiber);
            at_warp += fiber.state == State::Warp;
            at_block += fiber.state == State::Block;
            ended += fiber.state == State::Ended;
        }
        if (at_warp == 0 && (at_block == 0 || ended == 0)) return nullptr;
        if (at_warp > 0 && at_warp < count) return "some lanes of a warp wait for others that have ended or wait for the block";
        if (at_warp == 0) return "some lanes of a warp wait for the block and others have ended";
    }
}

const char *run_block(unsigned threads, bool backwards) {
    unsigned warps = (threads + 31) / 32;
    for (;;) {
        unsigned at_block = 0, ended = 0;
        for (unsigned i = 0; i < warps; i++) {
            unsigned first = 32 * (backwards ? warps - 1 - i : i);
            unsigned count = std::min(32u, threads - first);
            if (const char *error = run_warp(first, count, backwards)) return error;
            (machine->fibers[first].state == State::Ended ? ended : at_block) += 1;
        }
        if (at_block == 0) return nullptr;
        if (ended > 0) return "some warps of a block wait for others that have ended";
        for (unsigned i = 0; i < threads; i++) machine->fibers[i].state = State::Running;
    }
}

void begin_block(dim3 grid, dim3 block, dim3 index, unsigned shared_bytes) {
    std::memset(machine->shared, 0xff, shared_bytes);
    for (unsigned i = 0; i < block.x; i++) {
        Fiber &fiber = machine->fibers[i];
        fiber.thread = Thread{dim3{i, 0, 0}, index, block, grid, machine->shared};
        fiber.state = State::Running;
        fiber.exchanges = 0;
        prepare(fiber, i);
    }
}

}  // namespace

Kernel::Kernel(const char *name, size_t argument_bytes, unsigned threads, void (*run)(const void *)) {
    kernels()[name] = Entry{argument_bytes, threads, run};
}

Thread &current() {
    return machine->running->thread;
}

void meet_block() {
    leave(State::Block);
}

void meet_warp() {
    leave(State::Warp);
}

uint32_t exchange(uint32_t bits, unsigned from) {
    unsigned index = current().thread.x, turn = machine->running->exchanges++ % 2;
    machine->words[turn][index] = bits;
    meet_warp();
    return machine->words[turn][index / 32 * 32 + from];
}

const Fragments *exchange_fragments(const Fragments &own) {
    unsigned index = current().thread.x, turn = machine->running->exchanges++ % 2;
    machine->fragments[turn][index] = own;
    meet_warp();
    return &machine->fragments[turn][index / 32 * 32];
}

}  // namespace emulated

using namespace emulated;

// Runs a kernel with a grid of blocks. Returns null, or what is wrong, which is valid until the thread's next call.
extern "C" const char *stowage_emulator_launch(const char *name, const unsigned grid[3], unsigned threads, unsigned shared_bytes, const void *arguments, size_t argument_bytes) {
    static thread_local std::string error;
    static thread_local Machine own;
    auto failed = [&](const std::string &why) {
        error = std::string("kernel ") + name + ": " + why;
        return error.c_str();
    };
    auto found = kernels().find(name);
    if (found == kernels().end()) return failed("there is none of this name");
    const Entry &kernel = found->second;
    if (kernel.argument_bytes != argument_bytes) return failed("its arguments have " + std::to_string(kernel.argument_bytes) + " bytes, not " + std::to_string(argument_bytes));
    if (threads > kernel.threads || threads == 0 || threads > MOST_THREADS) return failed("it is made for blocks of at most " + std::to_string(kernel.threads) + " threads, not " + std::to_string(threads));
    if (shared_bytes > SHARED_BYTES) return failed("a block has " + std::to_string(SHARED_BYTES) + " bytes of shared memory, not " + std::to_string(shared_bytes));
    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[1] > 65535 || grid[2] > 65535) return failed("no GPU takes a grid of this size");
    if (!own.ready) return failed("there is no memory for its threads");
    machine = &own;
    own.run = kernel.run;
    own.arguments = arguments;
    dim3 all = {grid[0], grid[1], grid[2]};
    bool backwards = false;
    for (unsigned z = 0; z < all.z; z++) {
        for (unsigned y = 0; y < all.y; y++) {
            for (unsigned x = 0; x < all.x; x++) {
                begin_block(all, dim3{threads, 1, 1}, dim3{x, y, z}, shared_bytes);
                if (const char *why = run_block(threads, backwards)) return failed(why);
                backwards = !backwards;
            }
        }
    }
    return nullptr;
}
