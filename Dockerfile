# Unmask in one image: page and API on port 7860, weights inside, no network needed once it is built. Three targets:
#   docker build -t unmask .                        everything: training, evaluation, GPUs, every weight file
#   docker build -t unmask:slim --target slim .     serves our own weight files without torch and timm, a fifth the size
#   docker build -t unmask:cpu --target cpu .       everything but GPUs: torch from an index of CPU wheels
# then  docker run --rm -p 7860:7860 unmask
# Each runs with --read-only --tmpfs /tmp too: it writes nowhere else.

# What the project needs, without the settings of its tools: a change of those does not install everything again.
FROM python:3.11-slim AS declared
COPY pyproject.toml ./
RUN sed -i '/^\[tool\./,$d' pyproject.toml

FROM python:3.11-slim AS installer
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /app
COPY --from=declared pyproject.toml ./
COPY requirements.lock ./
RUN uv venv --quiet /app/.venv

# The runtime dependencies alone, each at the version and with the hash that the one lock states.
# Bytecode is compiled here, which halves the time to ready.
FROM installer AS build
RUN uv pip install --quiet --no-cache --python /app/.venv/bin/python --compile-bytecode \
      --require-hashes --constraint requirements.lock --requirement pyproject.toml

# The same without what trains and reads foreign weight files. The shipped weights come with torch's own answers
# (weights/*.proof.npz), which the engine meets at every start instead of torch itself.
FROM installer AS slim-build
RUN printf 'torch\ntorchvision\ntimm\n' > without.txt \
 && uv pip install --quiet --no-cache --python /app/.venv/bin/python --compile-bytecode --excludes without.txt \
      --require-hashes --constraint requirements.lock --requirement pyproject.toml

# CPU wheels are other files than the lock's, so their hashes cannot be checked: take an index that you trust.
FROM slim-build AS cpu-build
ARG CPU_INDEX=https://download.pytorch.org/whl/cpu
RUN uv pip install --quiet --no-cache --python /app/.venv/bin/python --compile-bytecode \
      --index "$CPU_INDEX" --no-verify-hashes --constraint requirements.lock torch torchvision timm

FROM python:3.11-slim AS code
WORKDIR /app
COPY LICENSE ./
COPY weights weights
COPY model model
COPY server server
COPY ui ui
RUN ["python", "-m", "compileall", "-q", "model", "server", "ui"]

FROM python:3.11-slim AS runtime
ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    UNMASK_HOST=0.0.0.0 \
    UNMASK_PORT=7860 \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/cache \
    MPLCONFIGDIR=/tmp/matplotlib \
    GRADIO_TEMP_DIR=/tmp/gradio \
    GRADIO_ANALYTICS_ENABLED=False \
    HF_HUB_OFFLINE=1
WORKDIR /app
USER 1000
EXPOSE 7860
# Importing gradio takes most of the start; a small or busy machine needs the grace period. Docker may hand a proxy's
# address to every container: it has no business between this one and itself.
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open(f'http://127.0.0.1:{os.environ[\"UNMASK_PORT\"]}/readyz', timeout=4).close()"]
CMD ["python", "-m", "server"]

# The environment first: it changes least.
FROM runtime AS slim
COPY --from=slim-build /app/.venv .venv
COPY --from=code /app ./

FROM runtime AS cpu
COPY --from=cpu-build /app/.venv .venv
COPY --from=code /app ./

FROM runtime AS full
COPY --from=build /app/.venv .venv
COPY --from=code /app ./
# Said again, for whoever looks only at the end.
CMD ["python", "-m", "server"]
