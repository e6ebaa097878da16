# shellcheck shell=bash
# XLA's flags for training on many chips, each with its reason. Sourced, never run:
#
#   . tpu/flags.sh tpu     # sets LIBTPU_INIT_ARGS
#   . tpu/flags.sh gpu     # sets XLA_FLAGS and the memory fraction
#
# What you have set already comes last, so it wins. Flags change with jaxlib and libtpu: one that is gone
# ends the program at once with "Unknown flag". Measure before and after; take a flag out that does nothing.

jcl_flags=()
case "${1:-}" in
tpu)
  # The first five let a chip compute while weights arrive: fsdp gathers each layer's weights before it is
  # used, and a gather that is fused with matmuls, over several steps, hides behind them.
  # Source: JAX, docs/xla_flags.md ("TPU XLA flags"); MaxText, benchmarks/xla_flags_library.py,
  # CF_FOR_ALL_GATHER ("enabled by default but lets make sure").
  jcl_flags+=(--xla_enable_async_all_gather=true)
  jcl_flags+=(--xla_tpu_enable_async_collective_fusion=true)
  jcl_flags+=(--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true)
  jcl_flags+=(--xla_tpu_enable_async_collective_fusion_multiple_steps=true)
  jcl_flags+=(--xla_tpu_overlap_compute_collective_tc=true)
  # Several slices: the gradients' all-reduce over the data centre's network overlaps with the backward
  # pass, also when its parts differ in size. Costs memory; does nothing on one slice.
  # Source: the same two, DATA_PARALLEL_OVERLAP.
  jcl_flags+=(--xla_tpu_enable_data_parallel_all_reduce_opt=true)
  jcl_flags+=(--xla_tpu_data_parallel_opt_different_sized_ops=true)
  # Left out: xla_tpu_spmd_rng_bit_generator_unsafe. It is faster, and draws other numbers on every mesh
  # (docs/xla_flags.md says so): replay and reservoirs would differ from one machine to many.
  export LIBTPU_INIT_ARGS="${jcl_flags[*]} ${LIBTPU_INIT_ARGS:-}"
  ;;
gpu)
  # Moves collectives so that they overlap with compute. Off by default.
  # Source: JAX, docs/gpu_performance_tips.md and docs/xla_flags.md.
  jcl_flags+=(--xla_gpu_enable_latency_hiding_scheduler=true)
  # Gathers and reduces the weights of a whole layer, not of one matrix, at a time: few large messages
  # instead of many small ones. A layer of an 8B Llama is 0.22 B parameters, 0.44 GB in bfloat16: 1 GiB
  # holds it, and costs less memory than JAX-Toolbox's 8 GiB. A 70B's layer is 1.7 GB: take 2 GiB.
  # Source: docs/gpu_performance_tips.md ("at least a Transformer layer's weight"); NVIDIA JAX-Toolbox,
  # rosetta/docs/GPU_performance.md, "Optimizations for FSDP communication".
  jcl_flags+=(--xla_gpu_all_gather_combine_threshold_bytes=1073741824)
  jcl_flags+=(--xla_gpu_reduce_scatter_combine_threshold_bytes=1073741824)
  jcl_flags+=(--xla_gpu_all_reduce_combine_threshold_bytes=1073741824)
  # Layers are a scan, a loop for XLA: pipelining gathers the next layer's weights during this one's
  # compute, and double buffering lets it do so without a copy.
  # Source: docs/xla_flags.md; JAX-Toolbox, "Pipelined comm/compute for FSDP flags".
  jcl_flags+=(--xla_gpu_enable_pipelined_all_gather=true)
  jcl_flags+=(--xla_gpu_enable_pipelined_reduce_scatter=true)
  jcl_flags+=(--xla_gpu_enable_pipelined_all_reduce=true)
  jcl_flags+=(--xla_gpu_enable_while_loop_double_buffering=true)
  export XLA_FLAGS="${jcl_flags[*]} ${XLA_FLAGS:-}"
  # JAX takes 75 % of a GPU's memory by default; the rest idles while the run says that it doesn't fit.
  # NCCL and cuBLAS need some of it. Source: JAX-Toolbox, "Flags to manage memory used in XLA" (0.8 to 0.9).
  export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
  ;;
*)
  echo "tpu/flags.sh: '${1:-}' is no accelerator; source it with tpu or gpu" >&2
  return 2
  ;;
esac
unset jcl_flags
