"""Statements about TensorRT's API, right and wrong ones, with which the stand-in is compared with the real library."""

from __future__ import annotations

from typing import Any

BATTERY = """
m.Builder() | m.Builder(1) | m.Builder(None) | m.Builder(logger=logger) | m.Builder(log=logger)
builder.create_network() | builder.create_network(flags=1) | builder.create_network(flag=1) | builder.create_network("1")
builder.create_network(1.0) | builder.create_network(True) | builder.create_network(1, 2) | builder.create_network(None)
builder.create_network(m.NetworkDefinitionCreationFlag.STRONGLY_TYPED) | builder.create_bulder_config() | builder()
len(builder) | builder.build_serialized_network(network) | builder.build_serialized_network(config, network) | bytes(builder)
setattr(builder, "max_threads", 2) | setattr(builder, "max_threads", 2.0) | builder.logger | m.INetworkDefinition()
setattr(config, "foo", 1) | config.foo | setattr(config, "profiling_verbosity", 2)
setattr(config, "profiling_verbosity", None) | setattr(config, "profiling_verbosity", m.ProfilingVerbosity.DETAILED)
config.set_flag(m.BuilderFlag.TF32) | config.set_flag(flag=m.BuilderFlag.TF32) | config.set_flag(1) | config.set_flag()
config.get_flag(m.ProfilingVerbosity.DETAILED) | config.create_timing_cache(b"")
setattr(config, "num_compute_capabilities", "x") | setattr(config, "num_compute_capabilities", 2.5)
config.set_compute_capability(0, 0) | setattr(config, "builder_optimization_level", 3)
setattr(config, "builder_optimization_level", "3") | setattr(network, "num_inputs", 3)
network.get_input() | network.get_input(0) | profile.set_shape("x", (1, 2), (1, 2), [1, 2])
profile.set_shape("x", (1, 2), (1, 2)) | profile.set_shape("x", 1, 2, 3) | profile.set_shape("x", (1.5,), (1,), (1,))
profile.set_shape(b"x", (1,), (1,), (1,)) | profile.set_shape(1, (1,), (1,), (1,))
profile.set_shape("x", min=(1,), opt=(1,), max=(1,)) | config.set_memory_pool_limit(m.MemoryPoolType.WORKSPACE, 1 << 20)
config.set_memory_pool_limit(m.MemoryPoolType.WORKSPACE, 1.5) | config.set_memory_pool_limit(1, 1)
config.add_optimization_profile(profile) | config.add_optimization_profile(config)
m.BuilderFlag.FP16 | m.BuilderFlag.TF32.name | m.BuilderFlag.TF32.nam | int(m.BuilderFlag.TF32) | 1 << m.BuilderFlag.TF32
m.BuilderFlag(1) | m.BuilderFlag("x") | str(m.ILogger.Severity.ERROR) | m.BuilderFlag.__members__["TF32"]
m.IInt8EntropyCalibrator2 | m.ICudaEngine() | m.Logger.INFO | m.ILogger.INFO | m.Logger.Severity.INFO
m.Logger(m.Logger.VERBOSE) | m.Logger(min_severity=m.Logger.VERBOSE) | m.Logger(1) | m.float16.name | m.float17
type("L", (m.ILogger,), {"__init__": lambda self: None})() | type("L", (m.ILogger,), {"log": lambda self, s, t: None})()
parser.parse("text") | parser.parse(1) | parser.get_error("a") | parser.num_errors | parser.num_errors()
setattr(config, "progress_monitor", object()) | setattr(config, "progress_monitor", None)
setattr(config, "progress_monitor", monitor)
m.Runtime(logger).deserialize_cuda_engine("x") | m.Runtime(logger).deserialize_cuda_engine(1) | m.Runtime(logger).serialize()
setattr(m.Runtime(logger), "engine_host_code_allowed", True) | setattr(m.Runtime(logger), "engine_host_code_allowed", "x")
m.Dims((1, 2))[1] | m.Dims((1, 2))[2] | tuple(m.Dims((1, 2))) == (1, 2) | len(m.Dims((1, 2))) | m.Dims([1.5])
m.Dims("ab") | m.Dims()
"""


def answers(module: Any) -> dict[str, str]:
    """Statement -> the value if it is a plain one, "fine" for any other, or the name of the exception."""

    class Logger(module.ILogger):  # type: ignore[misc]  # the base class is known only at run time
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            pass

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]  # as above
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)

        def phase_start(self, *_phase: Any) -> None:
            pass

        def step_complete(self, *_phase: Any) -> bool:
            return True

        def phase_finish(self, *_phase: Any) -> None:
            pass

    logger = Logger()
    builder = module.Builder(logger)
    config, network = builder.create_builder_config(), builder.create_network(0)
    names = {"m": module, "logger": logger, "builder": builder, "config": config, "network": network, "monitor": Monitor()}
    names |= {"parser": module.OnnxParser(network, logger), "profile": builder.create_optimization_profile()}
    return {statement: _answer(statement, names) for line in BATTERY.strip().splitlines() for statement in line.split(" | ")}


def _answer(statement: str, names: dict[str, Any]) -> str:
    try:
        value = eval(statement, names)
    except Exception as error:  # noqa: BLE001  # which one it is, is the answer
        return type(error).__name__
    return (
        repr(value)
        if statement.startswith(("int(", "1 <<", "str(", "len(", "tuple(")) or statement.endswith(".name")
        else "fine"
    )
