# Two images from one file:
#   docker build --target light --tag condense:light .    check, report and compare of saved runs, without torch
#   docker build --target full --tag condense .           everything, on the CPU
# Run as the user of the files: docker run --rm --user "$(id -u)" --volume "$PWD:/work" condense:light check run.json
FROM python:3.12-slim AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
ENV CONDENSE_CACHE=/cache/condense HF_HOME=/cache/huggingface
WORKDIR /src
COPY constraints.txt requirements-light.txt pyproject.toml README.md LICENSE ./
RUN mkdir --mode=1777 /cache

FROM base AS light
RUN pip install --constraint constraints.txt --requirement requirements-light.txt
COPY condense condense
RUN pip install --no-deps .
WORKDIR /work
ENTRYPOINT ["condense"]

FROM base AS full
RUN pip install --index-url https://download.pytorch.org/whl/cpu torch==2.13.0
COPY condense condense
RUN pip install --constraint constraints.txt '.[gguf,peft,data]'
WORKDIR /work
ENTRYPOINT ["condense"]
