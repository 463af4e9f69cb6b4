// Fibers that stand for the threads of a block.
#include "emulate.h"

#include <ucontext.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace emulated {

thread_local Place place;

namespace {

constexpr size_t STACK_BYTES = 64 << 10;

enum class State { Ready, AtBlock, AtWarp, AtPhase, Done };

struct Copy {
    void* to;
    const void* from;
};

// A box of a matrix on its way to shared memory.
struct Box {
    void* to;
    const void* map;
    unsigned k, row;
};
constexpr unsigned BOX_ROWS = 128, BOX_LINE_BYTES = 128;

// What the driver writes where a tensor map lies.
struct TensorMap {
    uint64_t at, n_rows, n_cols;
};

struct PhaseBarrier {
    unsigned n_arrivals = 0, n_missing = 0;
    int64_t n_bytes = 0;
    unsigned parity = 0;
    std::vector<Box> boxes;
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    State state;
    Dim thread_idx;
    unsigned mask;
    uint64_t value;
    Values values;
    // Groups of copies that are not done yet, the last of them not ended.
    std::vector<std::vector<Copy>> groups;
    // The same of products.
    std::vector<std::vector<Product>> products;
    void* barrier;
    unsigned parity;
};

struct Block {
    ucontext_t scheduler;
    std::vector<Fiber> fibers;
    std::vector<unsigned char> shared;
    size_t running = 0;
    Body body = nullptr;
    void** args = nullptr;
    uint64_t random = 1;
    // Whether warps run one after another.
    bool is_apart = false;
    // Whether asynchronous copies happen at once, instead of when they are waited for.
    bool is_eager = false;
    std::map<const void*, PhaseBarrier> barriers;
    // Whether a barrier or an operand was used as it must not be.
    bool is_misused = false;
};

thread_local Block block;

uint64_t draw() {
    block.random ^= block.random << 13;
    block.random ^= block.random >> 7;
    block.random ^= block.random << 17;
    return block.random;
}

void begin_fiber() {
    block.body(block.args);
    block.fibers[block.running].state = State::Done;
    // The context goes on in the scheduler by its link.
}

// Waits in a state until the scheduler finds what is waited for.
void wait(State state) {
    Fiber& fiber = block.fibers[block.running];
    fiber.state = state;
    swapcontext(&fiber.context, &block.scheduler);
}

bool release_block() {
    bool is_any = false;
    for (const Fiber& fiber : block.fibers) {
        if (fiber.state != State::AtBlock && fiber.state != State::Done) return false;
        is_any |= fiber.state == State::AtBlock;
    }
    for (Fiber& fiber : block.fibers) {
        if (fiber.state == State::AtBlock) fiber.state = State::Ready;
    }
    return is_any;
}

// Lanes go on once all that their mask names are there with the same mask.
bool release_warp(size_t first) {
    bool is_released = false;
    const size_t n = std::min<size_t>(32, block.fibers.size() - first);
    for (size_t i = 0; i < n; ++i) {
        const Fiber& fiber = block.fibers[first + i];
        if (fiber.state != State::AtWarp) continue;
        const unsigned mask = fiber.mask;
        Values values{};
        bool is_complete = mask >> i & 1;
        for (size_t j = 0; j < 32; ++j) {
            if (!(mask >> j & 1)) continue;
            if (j >= n) {
                is_complete = false;
                break;
            }
            const Fiber& other = block.fibers[first + j];
            is_complete &= other.state == State::AtWarp && other.mask == mask;
            values.of_lane[j] = other.value;
        }
        if (!is_complete) continue;
        for (size_t j = 0; j < n; ++j) {
            if (!(mask >> j & 1)) continue;
            block.fibers[first + j].values = values;
            block.fibers[first + j].state = State::Ready;
        }
        is_released = true;
    }
    return is_released;
}

// Swizzled as the hardware does: address bits 7 to 9 are added to bits 4 to 6 without carry.
unsigned char* at_address(unsigned address, size_t n_bytes) {
    const size_t at = (address ^ (address >> 7 & 7) << 4) - SHARED_BEGIN;
    if (at < block.shared.size() && n_bytes <= block.shared.size() - at) return &block.shared[at];
    block.is_misused = true;
    return block.shared.data();
}

void end_phase_if_over(PhaseBarrier& barrier) {
    if (barrier.n_missing > 0 || barrier.n_bytes != 0) return;
    barrier.parity ^= 1;
    barrier.n_missing = barrier.n_arrivals;
}

void finish(const Box& box) {
    const TensorMap& map = *static_cast<const TensorMap*>(box.map);
    const auto* from = reinterpret_cast<const uint16_t*>(map.at);
    const auto* to = static_cast<const unsigned char*>(box.to);
    const unsigned begin = SHARED_BEGIN + static_cast<unsigned>(to - block.shared.data());
    block.is_misused |= begin % 1024 != 0;
    for (unsigned r = 0; r < BOX_ROWS; ++r) {
        for (unsigned chunk = 0; chunk < BOX_LINE_BYTES / 16; ++chunk) {
            uint16_t bits[8] = {};
            for (unsigned i = 0; i < 8; ++i) {
                const uint64_t row = box.row + r, col = box.k + chunk * 8 + i;
                if (row < map.n_rows && col < map.n_cols) bits[i] = from[row * map.n_cols + col];
            }
            std::memcpy(at_address(begin + r * BOX_LINE_BYTES + chunk * 16, 16), bits, 16);
        }
    }
}

void finish_boxes(PhaseBarrier& barrier) {
    for (const Box& box : barrier.boxes) {
        finish(box);
        barrier.n_bytes -= BOX_ROWS * BOX_LINE_BYTES;
    }
    barrier.boxes.clear();
    end_phase_if_over(barrier);
}

// Lets those go on who wait for a phase that is over, or is as soon as copies are there.
bool release_phases(size_t first, size_t n) {
    bool is_released = false;
    for (size_t i = first; i < first + n; ++i) {
        Fiber& fiber = block.fibers[i];
        if (fiber.state != State::AtPhase) continue;
        PhaseBarrier& barrier = block.barriers[fiber.barrier];
        const bool waits = barrier.parity == fiber.parity;
        if (waits && barrier.n_missing == 0 && !barrier.boxes.empty()) finish_boxes(barrier);
        if (barrier.parity == fiber.parity) continue;
        fiber.state = State::Ready;
        is_released = true;
    }
    return is_released;
}

void go_on(size_t fiber) {
    block.running = fiber;
    place.thread_idx = block.fibers[fiber].thread_idx;
    swapcontext(&block.scheduler, &block.fibers[fiber].context);
}

// Lets those of `n` fibers that can go on do so, from a random one on; whether there were any.
bool go_on_all(size_t first, size_t n) {
    bool is_any = false;
    const size_t start = draw() % n;
    for (size_t i = 0; i < n; ++i) {
        const size_t at = first + (start + i) % n;
        if (block.fibers[at].state != State::Ready) continue;
        go_on(at);
        is_any = true;
    }
    return is_any;
}

// One warp after another, each as far as it gets alone: whoever relies on another warp without a barrier
// finds that it has done nothing yet, or everything.
bool go_on_apart() {
    const size_t n_fibers = block.fibers.size(), n_warps = (n_fibers + 31) / 32;
    bool is_any = false;
    const size_t start = draw() % n_warps;
    for (size_t i = 0; i < n_warps; ++i) {
        const size_t first = (start + i) % n_warps * 32;
        const size_t n = std::min<size_t>(32, n_fibers - first);
        while (go_on_all(first, n) || release_warp(first) || release_phases(first, n)) is_any = true;
    }
    return is_any;
}

// All warps abreast.
bool go_on_together() {
    bool is_any = go_on_all(0, block.fibers.size());
    for (size_t first = 0; first < block.fibers.size(); first += 32) is_any |= release_warp(first);
    is_any |= release_phases(0, block.fibers.size());
    return is_any;
}

// Whether all threads came to their end.
bool run_block() {
    for (Fiber& fiber : block.fibers) {
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = STACK_BYTES;
        fiber.context.uc_link = &block.scheduler;
        makecontext(&fiber.context, begin_fiber, 0);
        fiber.state = State::Ready;
        fiber.groups.assign(1, {});
        fiber.products.assign(1, {});
    }
    block.barriers.clear();
    // Whatever nobody has written is not a number.
    std::fill(block.shared.begin(), block.shared.end(), 0xff);
    do {
        while (block.is_apart ? go_on_apart() : go_on_together()) {
        }
    } while (release_block());
    for (const Fiber& fiber : block.fibers) {
        if (fiber.state != State::Done) return false;
    }
    return true;
}

void finish(const Copy& copy) {
    if (copy.from == nullptr) {
        std::memset(copy.to, 0, 16);
    } else {
        std::memcpy(copy.to, copy.from, 16);
    }
}

struct Kernel {
    Body body;
    size_t n_args;
};

std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> kernels;
    return kernels;
}

}  // namespace

unsigned char* shared_memory() { return block.shared.data(); }

void wait_for_block() { wait(State::AtBlock); }

Values exchange(unsigned mask, uint64_t value) {
    Fiber& fiber = block.fibers[block.running];
    fiber.mask = mask;
    fiber.value = value;
    wait(State::AtWarp);
    return fiber.values;
}

void start_copy(void* to, const void* from) {
    const Copy copy{to, from};
    if (block.is_eager) return finish(copy);
    block.fibers[block.running].groups.back().push_back(copy);
}

void end_group() { block.fibers[block.running].groups.emplace_back(); }

void wait_for_groups(size_t n_left) {
    auto& groups = block.fibers[block.running].groups;
    // The last is not ended.
    while (groups.size() > n_left + 1) {
        for (const Copy& copy : groups.front()) finish(copy);
        groups.erase(groups.begin());
    }
}

void init_barrier(void* barrier, unsigned n_arrivals) {
    block.barriers[barrier] = {n_arrivals, n_arrivals, 0, 0, {}};
}

void arrive(void* at, unsigned n_bytes) {
    PhaseBarrier& barrier = block.barriers[at];
    if (barrier.n_missing == 0) {
        // More than were said to come, or none were.
        block.is_misused = true;
        return;
    }
    barrier.n_bytes += n_bytes;
    --barrier.n_missing;
    end_phase_if_over(barrier);
}

void wait_for_phase(void* barrier, unsigned parity) {
    Fiber& fiber = block.fibers[block.running];
    fiber.barrier = barrier;
    fiber.parity = parity;
    wait(State::AtPhase);
}

void start_box(void* to, const void* map, unsigned k, unsigned row, void* at) {
    PhaseBarrier& barrier = block.barriers[at];
    barrier.boxes.push_back({to, map, k, row});
    if (block.is_eager) finish_boxes(barrier);
}

void start_product(const Product& product) {
    if (block.is_eager) return product.compute(product);
    block.fibers[block.running].products.back().push_back(product);
}

void end_products() { block.fibers[block.running].products.emplace_back(); }

void wait_for_products(size_t n_left) {
    auto& products = block.fibers[block.running].products;
    while (products.size() > n_left + 1) {
        for (const Product& product : products.front()) product.compute(product);
        products.erase(products.begin());
    }
}

const unsigned char* operand_chunk(uint64_t descriptor, unsigned row, unsigned chunk) {
    const unsigned begin = (descriptor & 0x3fff) << 4;
    const unsigned stride = (descriptor >> 32 & 0x3fff) << 4;
    // 128-byte swizzle, whose pattern begins at a multiple of 1024.
    block.is_misused |= descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0;
    return at_address(begin + row / 8 * stride + row % 8 * BOX_LINE_BYTES + chunk * 16, 16);
}

unsigned lane() { return block.running % 32; }

int run(const Launch& launch, Body body, void** args) {
    const Dim& dim = launch.block;
    block.fibers.clear();
    block.fibers.resize(static_cast<size_t>(dim.x) * dim.y * dim.z);
    for (size_t i = 0; i < block.fibers.size(); ++i) {
        block.fibers[i].stack.reset(new char[STACK_BYTES]);
        const unsigned at = static_cast<unsigned>(i);
        block.fibers[i].thread_idx = {at % dim.x, at / dim.x % dim.y, at / dim.x / dim.y};
    }
    block.shared.assign(launch.shared_bytes, 0);
    block.is_misused = false;
    block.body = body;
    block.args = args;
    block.random = launch.seed * 2 + 1;
    block.is_apart = launch.seed % 2 > 0;
    block.is_eager = launch.seed % 4 == 3;
    place.grid_dim = launch.grid;
    place.block_dim = dim;
    const Dim& grid = launch.grid;
    for (unsigned z = 0; z < grid.z; ++z) {
        for (unsigned y = 0; y < grid.y; ++y) {
            for (unsigned x = 0; x < grid.x; ++x) {
                place.block_idx = {x, y, z};
                if (!run_block()) return 1;
                for (const auto& [at, barrier] : block.barriers) block.is_misused |= !barrier.boxes.empty();
                if (block.is_misused) return 3;
            }
        }
    }
    return 0;
}

Registered::Registered(const char* name, Body body, size_t n_args) { kernels()[name] = {body, n_args}; }

}  // namespace emulated

// 0, 1 if threads wait for one another for ever, 2 if there is no such kernel, 3 if it used a barrier or an
// operand of a product as it must not, or 4 if it takes another number of arguments.
extern "C" int moeshard_emulate(const char* name, const unsigned* grid, const unsigned* block_dim,
                                size_t shared_bytes, uint64_t seed, void** args, size_t n_args) {
    const auto found = emulated::kernels().find(name);
    if (found == emulated::kernels().end()) return 2;
    if (found->second.n_args != n_args) return 4;
    const emulated::Launch launch{{grid[0], grid[1], grid[2]},
                                  {block_dim[0], block_dim[1], block_dim[2]},
                                  shared_bytes,
                                  seed};
    return emulated::run(launch, found->second.body, args);
}
