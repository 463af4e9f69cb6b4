// cuBLASLt on the CPU: the functions that are used, as NVIDIA documents them, in the process's own memory.
// Whatever they are handed must make sense, or they say that it does not.

#include <cmath>
#include <cstring>
#include <map>
#include <string>

#include "types.h"

namespace {

enum Status { kSuccess = 0, kInvalidValue = 7, kNotSupported = 15 };
enum Type { kF32 = 0, kF16 = 2, kBf16 = 14 };
constexpr int kCompute32F = 68;
constexpr int kTransA = 3, kTransB = 4, kEpilogue = 7, kBiasPointer = 8;
constexpr int kRelu = 2, kBias = 4, kGelu = 32;
constexpr int kMaxWorkspace = 1;
constexpr uint64_t kChosen = 0x6d6f6573;

// Handles of each kind begin with their own number, so that none is taken for another.
struct Library { int kind = 1; };
struct Product { int kind = 2; int transa = 0, transb = 0, epilogue = 1; const void* bias = nullptr; };
struct Matrix { int kind = 3; int type; uint64_t rows, cols; int64_t ld; };
struct Preference { int kind = 4; uint64_t workspace = 0; };

struct Choice {
    uint64_t algorithm[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

bool is(const void* handle, int kind) { return handle && *static_cast<const int*>(handle) == kind; }

float read(const void* at, uint64_t i, int type) {
    if (type == kBf16) return to_float(static_cast<const bf16*>(at)[i]);
    return to_float(static_cast<const f16*>(at)[i]);
}

void write(void* at, uint64_t i, int type, float x) {
    if (type == kBf16) static_cast<bf16*>(at)[i] = from_float<bf16>(x);
    else static_cast<f16*>(at)[i] = from_float<f16>(x);
}

// D = epilogue(op(A) · op(B) + beta · C): shapes fit, and types are those of 16 bits.
bool fits(const Product& p, const Matrix& a, const Matrix& b, const Matrix& c, const Matrix& d) {
    uint64_t m = p.transa ? a.cols : a.rows, k = p.transa ? a.rows : a.cols;
    uint64_t k_b = p.transb ? b.cols : b.rows, n = p.transb ? b.rows : b.cols;
    bool is_16 = a.type == kF16 || a.type == kBf16;
    for (const Matrix* other : {&a, &b, &c, &d}) {
        is_16 = is_16 && other->type == a.type && other->ld >= static_cast<int64_t>(other->rows);
    }
    return is_16 && k == k_b && c.rows == m && d.rows == m && c.cols == n && d.cols == n;
}

int create(void** to) { *to = new Library; return kSuccess; }

template <typename T, int kind>
int destroy(void* handle) {
    if (!is(handle, kind)) return kInvalidValue;
    delete static_cast<T*>(handle);
    return kSuccess;
}

size_t version() { return 130000; }

int create_product(void** to, int compute, int scale) {
    if (compute != kCompute32F || scale != kF32) return kNotSupported;
    *to = new Product;
    return kSuccess;
}

int set_product(void* handle, int attribute, const void* value, size_t bytes) {
    if (!is(handle, 2)) return kInvalidValue;
    auto& product = *static_cast<Product*>(handle);
    std::map<int, void*> numbers = {
        {kTransA, &product.transa}, {kTransB, &product.transb}, {kEpilogue, &product.epilogue}};
    if (attribute == kBiasPointer && bytes == sizeof(void*)) {
        std::memcpy(&product.bias, value, bytes);
        return kSuccess;
    }
    auto number = numbers.find(attribute);
    if (number == numbers.end() || bytes != sizeof(int)) return kInvalidValue;
    std::memcpy(number->second, value, bytes);
    return kSuccess;
}

int create_matrix(void** to, int type, uint64_t rows, uint64_t cols, int64_t ld) {
    *to = new Matrix{3, type, rows, cols, ld};
    return kSuccess;
}

int create_preference(void** to) { *to = new Preference; return kSuccess; }

int set_preference(void* handle, int attribute, const void* value, size_t bytes) {
    if (!is(handle, 4) || attribute != kMaxWorkspace || bytes != sizeof(uint64_t)) return kInvalidValue;
    std::memcpy(&static_cast<Preference*>(handle)->workspace, value, bytes);
    return kSuccess;
}

int choose(void* library, void* product, void* a, void* b, void* c, void* d, void* preference, int wanted,
           Choice* choices, int* n_choices) {
    bool are_handles = is(library, 1) && is(product, 2) && is(a, 3) && is(b, 3) && is(c, 3) && is(d, 3) &&
                       is(preference, 4) && wanted >= 1;
    if (!are_handles) return kInvalidValue;
    const auto& p = *static_cast<Product*>(product);
    const auto& [la, lb] = std::pair(*static_cast<Matrix*>(a), *static_cast<Matrix*>(b));
    if (!fits(p, la, lb, *static_cast<Matrix*>(c), *static_cast<Matrix*>(d))) return kInvalidValue;
    *n_choices = 0;
    // One width is not supported, so that callers can be seen to do without.
    if (la.rows == 40) return kNotSupported;
    choices[0] = Choice{{kChosen, la.rows, la.cols, lb.cols}, 0, kSuccess, 1.0f, {}};
    *n_choices = 1;
    return kSuccess;
}

int multiply(void* library, void* product, const float* alpha, const void* a, void* la, const void* b, void* lb,
             const float* beta, const void* c, void* lc, void* d, void* ld, const uint64_t* algorithm,
             void* workspace, size_t workspace_bytes, void*) {
    bool are_handles = is(library, 1) && is(product, 2) && is(la, 3) && is(lb, 3) && is(lc, 3) && is(ld, 3);
    if (!are_handles || !workspace || workspace_bytes == 0) return kInvalidValue;
    const auto& p = *static_cast<Product*>(product);
    const auto& [A, B] = std::pair(*static_cast<Matrix*>(la), *static_cast<Matrix*>(lb));
    const auto& [C, D] = std::pair(*static_cast<Matrix*>(lc), *static_cast<Matrix*>(ld));
    bool is_chosen = algorithm[0] == kChosen && algorithm[1] == A.rows && algorithm[2] == A.cols &&
                     algorithm[3] == B.cols;
    if (!is_chosen || !fits(p, A, B, C, D)) return kInvalidValue;
    if ((p.epilogue & kBias) && !p.bias) return kInvalidValue;
    uint64_t depth = p.transa ? A.rows : A.cols;
    for (uint64_t j = 0; j < D.cols; j++) {
        for (uint64_t i = 0; i < D.rows; i++) {
            float sum = 0.0f;
            for (uint64_t k = 0; k < depth; k++) {
                float x = read(a, p.transa ? k + i * A.ld : i + k * A.ld, A.type);
                float y = read(b, p.transb ? j + k * B.ld : k + j * B.ld, B.type);
                sum += x * y;
            }
            sum *= *alpha;
            if (*beta != 0.0f) sum += *beta * read(c, i + j * C.ld, C.type);
            if (p.epilogue & kBias) sum += read(p.bias, i, D.type);
            if ((p.epilogue & kRelu) && sum < 0.0f) sum = 0.0f;
            if (p.epilogue & kGelu) {
                sum = 0.5f * sum * (1.0f + std::tanh(0.7978845608f * (sum + 0.044715f * sum * sum * sum)));
            }
            write(d, i + j * D.ld, D.type, sum);
        }
    }
    return kSuccess;
}

template <typename F>
void* address(F* function) { return reinterpret_cast<void*>(function); }

}  // namespace

extern "C" void* moeshard_emulated_cublaslt(const char* name) {
    static const std::map<std::string, void*> functions = {
        {"cublasLtCreate", address(create)},
        {"cublasLtDestroy", address(destroy<Library, 1>)},
        {"cublasLtGetVersion", address(version)},
        {"cublasLtMatmulDescCreate", address(create_product)},
        {"cublasLtMatmulDescDestroy", address(destroy<Product, 2>)},
        {"cublasLtMatmulDescSetAttribute", address(set_product)},
        {"cublasLtMatrixLayoutCreate", address(create_matrix)},
        {"cublasLtMatrixLayoutDestroy", address(destroy<Matrix, 3>)},
        {"cublasLtMatmulPreferenceCreate", address(create_preference)},
        {"cublasLtMatmulPreferenceDestroy", address(destroy<Preference, 4>)},
        {"cublasLtMatmulPreferenceSetAttribute", address(set_preference)},
        {"cublasLtMatmulAlgoGetHeuristic", address(choose)},
        {"cublasLtMatmul", address(multiply)},
    };
    auto function = functions.find(name);
    return function == functions.end() ? nullptr : function->second;
}
