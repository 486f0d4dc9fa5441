#include "fourier_plan.h"

#include <cmath>
#include <complex>
#include <list>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

namespace trimtab {
namespace {

using Complex = std::complex<double>;

constexpr double kPi = 3.14159265358979323846;
constexpr int kRadices[] = {8,  4,  2,  3,  5,  7,  11, 13,           17,
                            19, 23, 29, 31, 37, 41, 43, kLargestRadix};
constexpr size_t kKeptPlans = 128;

// Everything a plan points to.
struct OwnedPlan {
  FourierPlan plan = {};
  std::vector<std::vector<float>> tables;
  std::unique_ptr<OwnedPlan> inner;

  const float* keep(std::vector<float> table) {
    tables.push_back(std::move(table));
    return tables.back().data();
  }
};

Complex unit(int64_t numerator, int64_t denominator) {
  const double angle =
      2.0 * kPi * static_cast<double>(numerator % denominator) / static_cast<double>(denominator);
  return {std::cos(angle), -std::sin(angle)};
}

void push(std::vector<float>& table, Complex value) {
  table.push_back(static_cast<float>(value.real()));
  table.push_back(static_cast<float>(value.imag()));
}

// Radices of a smooth length, largest first; empty if a larger prime divides it.
std::vector<int> factors(int64_t size) {
  std::vector<int> found;
  for (int radix : kRadices)
    while (size % radix == 0) {
      found.push_back(radix);
      size /= radix;
    }
  if (size != 1) found.clear();
  // 8 * 2 costs more than 4 * 4.
  for (size_t i = 0; i + 1 < found.size(); ++i)
    if (found[i] == 8 && found[i + 1] == 2) found[i] = found[i + 1] = 4;
  return found;
}

// Relative cost of the passes over a smooth length.
double smooth_cost(int64_t size) {
  double cost = 0;
  for (int radix : factors(size)) cost += radix <= 8 ? 1.0 : radix / 4.0;
  return cost * static_cast<double>(size);
}

int64_t convolution_size(int64_t at_least) {
  int64_t power = 1;
  while (power < at_least) power *= 2;
  int64_t best = power;
  for (int64_t odd : {3, 5, 9, 15, 25, 27}) {
    int64_t size = odd;
    while (size < at_least) size *= 2;
    if (smooth_cost(size) < smooth_cost(best)) best = size;
  }
  return best;
}

// Any smooth length in double precision; used for tables only.
std::vector<Complex> exact_transform(const std::vector<Complex>& x) {
  const int64_t size = static_cast<int64_t>(x.size());
  if (size == 1) return x;
  const int radix = factors(size).front();
  const int64_t rest = size / radix;
  std::vector<std::vector<Complex>> parts(radix);
  for (int q = 0; q < radix; ++q) {
    std::vector<Complex> part(rest);
    for (int64_t i = 0; i < rest; ++i) part[i] = x[i * radix + q];
    parts[q] = exact_transform(part);
  }
  std::vector<Complex> out(size);
  for (int64_t k = 0; k < size; ++k)
    for (int q = 0; q < radix; ++q) out[k] += parts[q][k % rest] * unit(k * q, size);
  return out;
}

void fill_levels(OwnedPlan& owned, int64_t size) {
  for (int radix : factors(size)) {
    size /= radix;
    std::vector<float> twiddles, rotations;
    for (int64_t j = 0; j < size; ++j)
      for (int q = 1; q < radix; ++q) push(twiddles, unit(j * q, size * radix));
    if (radix % 2 == 1)
      for (int k = 1; k <= radix / 2; ++k)
        for (int j = 1; j <= radix / 2; ++j) push(rotations, std::conj(unit(j * k, radix)));
    FourierLevel& level = owned.plan.levels[owned.plan.level_count++];
    level = {radix, size, owned.keep(std::move(twiddles)), owned.keep(std::move(rotations))};
  }
}

std::unique_ptr<OwnedPlan> build(int64_t size) {
  auto owned = std::make_unique<OwnedPlan>();
  owned->plan.size = size;
  if (size == 1 || !factors(size).empty()) {
    fill_levels(*owned, size);
    return owned;
  }
  const int64_t length = convolution_size(2 * size - 1);
  owned->inner = build(length);
  owned->plan.inner = &owned->inner->plan;
  std::vector<float> chirp, spectrum;
  std::vector<Complex> wrapped(length);
  for (int64_t k = 0; k < size; ++k) {
    const Complex value = unit(k * k, 2 * size);
    push(chirp, value);
    wrapped[k] = std::conj(value);
    if (k > 0) wrapped[length - k] = std::conj(value);
  }
  for (Complex value : exact_transform(wrapped))
    push(spectrum, value / static_cast<double>(length));
  owned->plan.chirp = owned->keep(std::move(chirp));
  owned->plan.spectrum = owned->keep(std::move(spectrum));
  return owned;
}

struct Entry {
  std::unique_ptr<OwnedPlan> owned;
  int users;
};

std::mutex guard;

// Most recently used first. Never destroyed: another thread may transform while the process ends.
std::list<Entry>& entries() {
  static auto* kept = new std::list<Entry>;
  return *kept;
}

void forget_unused() {
  size_t kept = 0;
  for (auto at = entries().begin(); at != entries().end();)
    at = ++kept > kKeptPlans && at->users == 0 ? entries().erase(at) : std::next(at);
}

}  // namespace

const FourierPlan* acquire_fourier_plan(int64_t size) try {
  std::lock_guard<std::mutex> lock(guard);
  for (auto at = entries().begin(); at != entries().end(); ++at)
    if (at->owned->plan.size == size) {
      ++at->users;
      entries().splice(entries().begin(), entries(), at);
      return &entries().front().owned->plan;
    }
  entries().push_front({build(size), 1});
  const FourierPlan* plan = &entries().front().owned->plan;
  forget_unused();
  return plan;
} catch (const std::bad_alloc&) {
  return nullptr;
}

void release_fourier_plan(const FourierPlan* plan) {
  std::lock_guard<std::mutex> lock(guard);
  for (Entry& entry : entries())
    if (&entry.owned->plan == plan) --entry.users;
}

}  // namespace trimtab
