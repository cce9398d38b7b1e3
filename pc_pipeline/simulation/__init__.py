"""Monte Carlo: counter-based numbers, the compiled kernel and its oracle, distillation, estimators."""
