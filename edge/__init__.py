"""The product: model, export, drift, reports, runtime, commands."""
