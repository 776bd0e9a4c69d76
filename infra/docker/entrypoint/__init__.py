"""How a container of our image starts, and as a plain process too: `serve`, `worker`, `train`, `prepare`, `health`.

`variables` says what the processes are told, `children` keeps them and ends them in order, `node` is a place in a Ray
cluster; `serve`, `worker` and `train` are what people name.
"""
