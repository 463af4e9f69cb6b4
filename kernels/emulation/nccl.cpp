// NCCL on the CPU: the functions that are used, as NVIDIA documents them, for ranks that are threads of the process.
// An exchange ends when all ranks have come; a rank that is gone, or does not come for a while, is an error.

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace {

enum Status { kSuccess = 0, kInvalidArgument = 4, kRemoteError = 6 };
constexpr int kByte = 1;
// Longer than a busy machine takes.
constexpr auto kPatience = std::chrono::seconds(60);

struct Id {
    uint64_t words[16];
};

// What a rank sends to a rank, and where that one wants it.
struct Parcel {
    const void* from;
    size_t n;
};

struct World {
    std::mutex mutex;
    std::condition_variable change;
    int n_ranks = 0, n_waiting = 0, n_joined = 0;
    uint64_t generation = 0;
    bool is_broken = false;
    // [from, to]
    std::vector<Parcel> parcels;

    // Waits until all ranks are here; false if one is gone or does not come.
    bool meet(std::unique_lock<std::mutex>& lock) {
        if (is_broken) return false;
        const uint64_t now = generation;
        if (++n_waiting == n_ranks) {
            n_waiting = 0;
            ++generation;
            change.notify_all();
            return true;
        }
        const bool has_come = change.wait_for(lock, kPatience, [&] { return generation != now || is_broken; });
        if (!has_come) is_broken = true;
        change.notify_all();
        return generation != now;
    }
};

struct Rank {
    std::shared_ptr<World> world;
    int rank;
};

struct Operation {
    Rank* rank;
    void* at;
    size_t n;
    int peer;
    bool is_send;
};

std::mutex worlds_mutex;
std::map<uint64_t, std::shared_ptr<World>> worlds;
uint64_t n_worlds = 0;
thread_local bool is_group = false;
thread_local std::vector<Operation> group;

int get_id(Id* id) {
    std::lock_guard<std::mutex> lock(worlds_mutex);
    std::memset(id, 0, sizeof(*id));
    id->words[3] = ++n_worlds;
    return kSuccess;
}

int join(void** to, int n_ranks, Id id, int rank) {
    std::shared_ptr<World> world;
    {
        std::lock_guard<std::mutex> lock(worlds_mutex);
        auto& known = worlds[id.words[3]];
        if (!known) known = std::make_shared<World>();
        world = known;
    }
    std::unique_lock<std::mutex> lock(world->mutex);
    if (id.words[3] == 0 || rank < 0 || rank >= n_ranks) return kInvalidArgument;
    if (world->n_joined++ == 0) {
        world->n_ranks = n_ranks;
        world->parcels.resize(n_ranks * n_ranks);
    } else if (world->n_ranks != n_ranks) {
        return kInvalidArgument;
    }
    *to = new Rank{world, rank};
    return world->meet(lock) ? kSuccess : kRemoteError;
}

int abort_rank(void* handle) {
    auto* rank = static_cast<Rank*>(handle);
    {
        std::lock_guard<std::mutex> lock(rank->world->mutex);
        rank->world->is_broken = true;
        rank->world->change.notify_all();
    }
    delete rank;
    return kSuccess;
}

int async_error(void* handle, int* error) {
    auto* rank = static_cast<Rank*>(handle);
    std::lock_guard<std::mutex> lock(rank->world->mutex);
    *error = rank->world->is_broken ? kRemoteError : kSuccess;
    return kSuccess;
}

const char* describe(int status) {
    return status == kRemoteError ? "remote process exited or there was a network error" : "invalid argument";
}

// All sends of a group and all receives, at once on all ranks.
int run(const std::vector<Operation>& operations) {
    if (operations.empty()) return kSuccess;
    Rank& rank = *operations[0].rank;
    World& world = *rank.world;
    std::unique_lock<std::mutex> lock(world.mutex);
    for (const Operation& op : operations) {
        if (op.peer < 0 || op.peer >= world.n_ranks) return kInvalidArgument;
        if (op.is_send) world.parcels[rank.rank * world.n_ranks + op.peer] = {op.at, op.n};
    }
    if (!world.meet(lock)) return kRemoteError;
    for (const Operation& op : operations) {
        if (op.is_send) continue;
        const Parcel& parcel = world.parcels[op.peer * world.n_ranks + rank.rank];
        if (parcel.n != op.n) return kInvalidArgument;
        std::memcpy(op.at, parcel.from, op.n);
    }
    return world.meet(lock) ? kSuccess : kRemoteError;
}

int start_group() {
    is_group = true;
    return kSuccess;
}

int finish_group() {
    is_group = false;
    const std::vector<Operation> operations = std::move(group);
    group.clear();
    return run(operations);
}

int add(Operation operation, int type) {
    if (type != kByte || !operation.rank) return kInvalidArgument;
    group.push_back(operation);
    return is_group ? kSuccess : finish_group();
}

int send(const void* from, size_t n, int type, int peer, void* rank, void*) {
    return add({static_cast<Rank*>(rank), const_cast<void*>(from), n, peer, true}, type);
}

int receive(void* to, size_t n, int type, int peer, void* rank, void*) {
    return add({static_cast<Rank*>(rank), to, n, peer, false}, type);
}

int all_gather(const void* from, void* to, size_t n, int type, void* handle, void*) {
    auto* rank = static_cast<Rank*>(handle);
    if (type != kByte || !rank) return kInvalidArgument;
    std::vector<Operation> operations;
    for (int peer = 0; peer < rank->world->n_ranks; peer++) {
        operations.push_back({rank, const_cast<void*>(from), n, peer, true});
        operations.push_back({rank, static_cast<char*>(to) + peer * n, n, peer, false});
    }
    return run(operations);
}

template <typename F>
void* address(F* function) { return reinterpret_cast<void*>(function); }

}  // namespace

extern "C" void* moeshard_emulated_nccl(const char* name) {
    static const std::map<std::string, void*> functions = {
        {"ncclGetUniqueId", address(get_id)},      {"ncclCommInitRank", address(join)},
        {"ncclCommAbort", address(abort_rank)},    {"ncclCommGetAsyncError", address(async_error)},
        {"ncclGetErrorString", address(describe)}, {"ncclGroupStart", address(start_group)},
        {"ncclGroupEnd", address(finish_group)},      {"ncclSend", address(send)},
        {"ncclRecv", address(receive)},            {"ncclAllGather", address(all_gather)},
    };
    auto function = functions.find(name);
    return function == functions.end() ? nullptr : function->second;
}
