"""The services that are measured beside ours, each as its product's documentation writes it."""
