"""The product on Kubernetes: manifests (`base/`, `overlays/`), and the programs that write, fill and apply them.

`generated` writes the files that follow from others, `render` puts an overlay together for one place, `secrets` makes
keys; `databases` and `model_file` run inside pods before their main container.
"""
