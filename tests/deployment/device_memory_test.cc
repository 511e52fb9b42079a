// What a GPU would have to hold, from headers alone.
#include "deployment/device_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/units.h"
#include "deployment/deployment.h"
#include "tests/support/golden.h"

namespace atl::deployment {
namespace {

using coordinator::CudaCompute;
using coordinator::CudaMemoryNeed;
using kernels::WeightFormat;
using testing::HasSubstr;
using testing::Not;

class DeviceMemory : public testing::Test {
 protected:
  MemoryRequest request(std::optional<WeightFormat> dense = {}) const {
    MemoryRequest request;
    model::NumericsProfile numerics;
    numerics.dense_format = dense;
    if (dense == WeightFormat::kInt4) numerics.activations = kernels::Activations::kF32;
    request.numerics = model_->settle(numerics);
    request.placement = topology::equal_placement(4, 1);
    request.rows_max = 16;
    request.cache_tokens = 4096;
    return request;
  }
  CudaMemoryNeed need(const MemoryRequest& request) const {
    return *device_memory_need(*model_, model_->tensors(), request);
  }

  const std::filesystem::path dir_ = test::tests_dir() / "models/tiny-fp8";
  const std::unique_ptr<model::OpenedModel> model_ = model::open(dir_);
};

TEST_F(DeviceMemory, is_what_the_loaded_weights_take) {
  for (const auto dense : {std::optional<WeightFormat>(), std::optional(WeightFormat::kInt4)}) {
    const MemoryRequest asked = request(dense);
    DeploymentOptions options;
    options.model_dir = dir_;
    options.numerics = asked.numerics;
    options.threads = 1;
    options.rows_max = asked.rows_max;
    options.cache_tokens = asked.cache_tokens;
    options.device = "cpu";
    Deployment deployment(options);
    const CudaMemoryNeed loaded =
        CudaCompute::memory_need(deployment.config(), deployment.engine().weights(),
                                 deployment.engine().cache(), asked.rows_max);
    const CudaMemoryNeed planned = need(asked);
    EXPECT_GE(planned.weights, loaded.weights);
    EXPECT_LT(planned.weights, loaded.weights + loaded.weights / 100);  // begins at whole lines
    EXPECT_EQ(planned.kv_cache, loaded.kv_cache);
    EXPECT_EQ(planned.buffers, loaded.buffers);
  }
}

TEST_F(DeviceMemory, fits_to_the_byte_and_says_what_else_would) {
  const MemoryRequest asked = request();
  const uint64_t total = need(asked).total();
  EXPECT_EQ(device_shortage(*model_, asked, {"--kv-cache", ""}, total), std::nullopt);
  const std::string text = *device_shortage(*model_, asked, {"--kv-cache", ""}, total - 1);
  EXPECT_THAT(text, HasSubstr("not enough memory on the device: " + format_bytes(total)));
  EXPECT_THAT(text, HasSubstr("what fits: --kv-cache (4,032 tokens in the KV cache fit)"));
  EXPECT_THAT(text, HasSubstr("or --dense-format int4 --activations f32"));
  EXPECT_THAT(*device_shortage(*model_, asked, {"--kv-cache", ""}, kMiB),
              HasSubstr("nothing smaller fits either"));
}

TEST_F(DeviceMemory, a_cache_of_as_many_tokens_as_fit_fits_and_one_block_more_does_not) {
  MemoryRequest asked = request();
  const uint64_t device = need(asked).total() + 12345;
  asked.cache_tokens = device_cache_tokens(*model_, model_->tensors(), asked, device);
  EXPECT_GE(asked.cache_tokens, 4096);
  EXPECT_LE(need(asked).total(), device);
  asked.cache_tokens += kernels::kAttentionBlock;
  EXPECT_GT(need(asked).total(), device);
}

TEST_F(DeviceMemory, rows_rounded_to_int8_have_no_kernel) {
  MemoryRequest asked = request();
  asked.numerics.dense_format = WeightFormat::kInt8;
  EXPECT_THAT(*device_shortage(*model_, asked, {"", ""}, UINT64_MAX),
              HasSubstr("rounded to int8 have no GPU kernel"));
}

}  // namespace
}  // namespace atl::deployment
