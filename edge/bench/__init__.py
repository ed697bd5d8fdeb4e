"""How fast a build answers on this machine: latency, throughput, memory, power, and against another build."""
