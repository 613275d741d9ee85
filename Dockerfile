# Unmask in one image: page and API on port 7860, weights inside, no network needed once it is built.
#   docker build -t unmask . && docker run --rm -p 7860:7860 unmask
# Runs with --read-only --tmpfs /tmp too: it writes nowhere else.

# What the project needs, without the settings of its tools: a change of those does not install everything again.
FROM python:3.11-slim AS declared
COPY pyproject.toml ./
RUN sed -i '/^\[tool\./,$d' pyproject.toml

FROM python:3.11-slim AS build
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /app
COPY --from=declared pyproject.toml ./
COPY requirements.lock ./
# The runtime dependencies alone, each at the version and with the hash that the one lock states.
# Bytecode is compiled here, which halves the time to ready.
RUN uv venv --quiet /app/.venv \
 && uv pip install --quiet --no-cache --python /app/.venv/bin/python --compile-bytecode \
      --require-hashes --constraint requirements.lock --requirement pyproject.toml

FROM python:3.11-slim
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
COPY --from=build /app/.venv /app/.venv
COPY LICENSE ./
COPY weights weights
COPY model model
COPY server server
COPY ui ui
RUN ["python", "-m", "compileall", "-q", "model", "server", "ui"]
USER 1000
EXPOSE 7860
# Importing torch and gradio takes most of the start; a small or busy machine needs the grace period.
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:7860/readyz', timeout=4).close()"]
CMD ["python", "-m", "server"]
