"""All settings, in one place. Each is read from the environment as ``CLIP_QUEUE_<NAME>`` (or a ``.env`` file)."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from clip_queue.shared.roots import root

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
CommaList = Annotated[list[str], NoDecode]
# Within these no clock, no call of the system and no number of Lua's overflows.
Seconds = Annotated[float, Field(le=1e6, allow_inf_nan=False)]  # eleven days
Long = Annotated[float, Field(le=1e9, allow_inf_nan=False)]  # as seconds thirty years, for who says "for ever"
Number = Annotated[int, Field(le=2**50)]


class Settings(BaseSettings):
    """What can be set. The description of each field is its text in ``docs/settings.md``."""

    model_config = SettingsConfigDict(
        env_prefix="CLIP_QUEUE_", env_file=".env", env_file_encoding="utf-8-sig", extra="ignore", frozen=True
    )

    # Where things are
    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        description="The Redis (≥ 7) or Valkey that holds queue and jobs: `redis://`, `rediss://`, `unix://` or "
        "`sentinel://` ([redis.md](redis.md)).",
    )
    redis_replicas: int = Field(
        0,
        ge=0,
        le=16,
        description="Replicas that must have a job before it is accepted, so that a failover of Redis keeps it.",
    )
    data_dir: Path = Field(
        Path("~/.clip-queue"), description="Folder of the embedded Valkey's append-only file and logs."
    )
    cache_dir: Path | None = Field(
        None, description="Folder of downloaded weights; unset: the model hub's usual cache."
    )

    # Models
    models: CommaList = Field(
        ["emoji-mini"],
        description="Models to serve, comma-separated: a known name (`ViT-B-16`), or `name=source` where source is "
        "`architecture/pretrained-tag`, `hf-hub:org/repo` or `local-dir:/path`. The first is the default model.",
    )
    model_aliases: CommaList = Field(
        [],
        description="Other names by which requests may ask for a model, comma-separated: "
        "`text-embedding-3-small=ViT-B-16`. The names of OpenAI's models at Hugging Face are known without it.",
    )
    device: str = Field("auto", description="`auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`, `mps`.")
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = Field(
        "auto",
        description="Weights' precision. `auto`: fp16 on a GPU with tensor cores, bf16 on a CPU with AVX512-BF16, else "
        "fp32. `int8`: of the linear layers of transformers, on a CPU with AVX2.",
    )
    batch_size: int = Field(0, ge=0, le=4096, description="Most items in a forward pass; 0: 256 on CUDA, 32 on a CPU.")
    background_batch_size: int = Field(
        0,
        ge=0,
        le=4096,
        description="The same for the background lane, for which an interactive request may have to wait on CUDA; "
        "0: as `batch_size` on CUDA, 8 on a CPU.",
    )
    decode_threads: int = Field(0, ge=0, le=256, description="Threads that decode images; 0: one a core.")
    decode_processes: int = Field(
        2,
        ge=1,
        le=64,
        description="Helper processes of a worker that decode the images whose cost is not known to be small, "
        "each started when it is first needed.",
    )
    decode_timeout: Seconds = Field(
        10.0, gt=0, description="Longest decoding of an image in a helper process, seconds; the image is refused then."
    )
    jpeg_draft: float = Field(
        0.0,
        ge=0,
        le=16,
        description="Decode a JPEG at 1/2, 1/4 or 1/8 of its size where each side keeps this many times the model's "
        "image size: less work, and vectors that differ a little (they get another fingerprint); 0: never.",
    )
    resize: Literal["auto", "exact", "fast"] = Field(
        "auto",
        description="`exact`: Pillow's resizing, as open_clip does it; `fast`: torch's, several times faster, 0.3 % of "
        "the pixels one level off (another fingerprint); `auto`: `exact` at fp32, else `fast`.",
    )
    text_cache_size: Number = Field(10_000, ge=0, description="Text embeddings that a worker remembers; 0: none.")

    # Limits on what comes in
    api_keys: Annotated[list[SecretStr], NoDecode] = Field(
        [], description="Accepted API keys, comma-separated. None: open to anyone who can connect."
    )
    vectorize_without_key: bool = Field(
        False,
        description="Whether `/vectorize` needs no key, also where `api_keys` are set: Weaviate's client sends none.",
    )
    max_body_bytes: Number = Field(64 * 2**20, ge=1024, description="Largest request body, bytes.")
    max_total_body_bytes: Number = Field(
        2**30, ge=1024, description="Most bytes of bodies that an API process is receiving and reading; then 503."
    )
    max_keyless_bytes: Number = Field(
        2**20,
        ge=1024,
        description="Most bytes of a body that are read where keys are set, and neither query, header nor the body's "
        "first 64 KiB have one (`api_key`).",
    )
    max_header_bytes: Number = Field(
        64 * 1024, ge=4096, description="Most bytes of a request's URL and headers, and of the trailers of its body."
    )
    max_connections: Number = Field(
        900,
        ge=1,
        description="Connections of an API process. Over it the longest idle one is closed; if all are being answered, "
        "new requests get 503, except health. Stay below the limit of open files (`ulimit -n`).",
    )
    cors_origins: CommaList = Field(
        [],
        description="Origins whose pages may call the API from a browser (`https://app.example.org`; `*`: all).",
    )
    max_items: Number = Field(8, ge=1, description="Most images (embed_image) or prompts (compare) in a request.")
    max_texts: Number = Field(10_000, ge=1, description="Most texts in an embed_text request.")
    max_inputs: Number = Field(
        2048, ge=1, description="Most texts and images in a request of `/v1/embeddings` or `/vectorize`."
    )
    max_job_items: Number = Field(1024, ge=1, description="Most images, texts or prompts in a job (`POST /jobs`).")
    max_text_chars: Number = Field(2_000, ge=1, description="Longest text, characters, before it is tokenised.")
    max_image_bytes: Number = Field(20 * 2**20, ge=1024, description="Largest encoded image, bytes.")
    max_image_pixels: Number = Field(50_000_000, ge=1, description="Largest image, pixels, read from its header.")
    max_image_work: Number = Field(
        1_000_000_000,
        ge=1,
        description="Most work that decoding an image may be, in pixels × passes (scans of a progressive JPEG), read "
        "from its header.",
    )

    # Fetching images by URL
    fetch_timeout: Seconds = Field(10.0, gt=0, description="Time for one URL with all its redirects, seconds.")
    fetch_max_redirects: Number = Field(3, ge=0, description="Redirects followed; each is checked like the first URL.")
    fetch_max_request_bytes: Number = Field(
        256 * 2**20, ge=1024, description="Most bytes fetched for one request or job."
    )
    fetch_max_total_bytes: Number = Field(
        512 * 2**20, ge=1024, description="Most bytes of requests that an API process is fetching for; then 503."
    )
    fetch_concurrency: Number = Field(32, ge=1, description="URLs fetched at once by an API process.")
    fetch_allow_http: bool = Field(False, description="Also accept plain `http://` URLs.")
    fetch_allow_ip_hosts: bool = Field(False, description="Also accept URLs whose host is an IP address.")
    fetch_allow_bare_hosts: bool = Field(False, description="Also accept hosts without a dot (`http://minio/…`).")
    fetch_allow_hosts: CommaList = Field(
        [], description="If set, only these hosts (`*.example.org` for all below one) may be fetched from."
    )
    fetch_deny_hosts: CommaList = Field([], description="Hosts never fetched from; the same form.")
    fetch_allow_networks: CommaList = Field(
        [], description="Networks (CIDR) that are not global but may be fetched from all the same."
    )

    # Bulk
    read_threads: int = Field(16, ge=1, le=256, description="Images that a shard reads at once.")
    read_timeout: Seconds = Field(
        60.0, gt=0, description="Longest wait for an image, or for a container's next row, seconds."
    )

    bulk_sources: CommaList = Field(
        [],
        description="Folders and URL prefixes that a run submitted over HTTP (`embed_dataset`) may read, "
        "comma-separated; the API and the workers need it. None: no run is accepted.",
    )
    bulk_outputs: CommaList = Field(
        [], description="Folders and URL prefixes below which such a run may write; the same form."
    )
    max_bulk_runs: Number = Field(
        100, ge=1, description="Runs led by workers that have not ended, before new ones get 429."
    )
    max_led_runs: int = Field(
        2, ge=0, le=64, description="Runs that a worker leads at once; others wait. 0: this worker leads none."
    )

    # Search
    search: CommaList = Field(
        [],
        description="Outputs of `clip-queue embed` that `/search` opens, comma-separated: `photos=/data/vectors`. The "
        "API needs the folders, and `pip install '.[outputs]'` ([http.md](http.md#search)).",
    )
    search_timeout: Seconds = Field(
        10.0, gt=0, description="Longest search, or reading of a hit's picture, in its process, seconds; then 504."
    )
    search_processes: int = Field(
        2, ge=1, le=64, description="Processes of an API process that search; each does one search at a time."
    )

    # For those who run it
    page: bool = Field(
        True, description="Whether `GET /` shows browsers the page ([page.md](page.md)); JSON otherwise."
    )
    metrics: Literal["key", "open", "off"] = Field(
        "key",
        description="Who may read `GET /metrics`: `key`: whoever may use the service; `open`: anyone who can connect; "
        "`off`: nobody.",
    )
    celery_tools: bool = Field(
        False,
        description="Whether workers answer `celery inspect` and send events, for Flower and the like "
        "([celery.md](celery.md)).",
    )

    # Time
    request_timeout: Seconds = Field(30.0, gt=0, description="A synchronous request's deadline, seconds; then 504.")
    header_timeout: Seconds = Field(
        10.0, gt=0, description="Time in which the URL and the headers of a request must arrive, seconds; then 408."
    )
    client_timeout: Seconds = Field(
        20.0,
        gt=0,
        description="Longest time without a byte of a request's body, seconds; then 408. The same for a client that "
        "takes nothing of its response: it is disconnected.",
    )
    min_client_rate: Long = Field(
        1024.0,
        ge=0,
        description="Bytes a second, on average after the first `client_timeout`, that a body must arrive with, and a "
        "response be taken with.",
    )
    max_wait: Seconds = Field(60.0, ge=0, description="Longest `GET /jobs/{id}?wait=…`, seconds; a longer one is cut.")
    redis_timeout: Seconds = Field(1.5, gt=0, description="Longest wait for Redis before a 503, seconds.")
    sync_ttl: Long = Field(
        120.0,
        ge=1,
        description="Longest time that the record of a synchronous request is kept, seconds: one that is answered with "
        "a result goes within a second.",
    )
    result_ttl: Long = Field(3600.0, gt=0, description="How long a finished job and its result are kept, seconds.")
    lease: Seconds = Field(8.0, gt=0.5, description="A worker that is silent this long has lost its jobs, seconds.")
    restart_grace: Seconds = Field(
        12.0,
        ge=0,
        description="Time that requests in the queue wait for a worker to come back once no live worker serves or "
        "loads their model, seconds; then 503.",
    )
    forward_timeout: Seconds = Field(
        120.0,
        gt=0,
        description="A forward pass longer than this is a hang and ends the worker, seconds; on a CPU, background and "
        "bulk passes give way, and the time of interactive ones beside them does not count.",
    )
    drain_timeout: Seconds = Field(20.0, gt=0, description="Time a worker has on SIGTERM to finish its jobs, seconds.")

    # Queue
    max_queued_items: Number = Field(
        4096, ge=1, description="Unfinished items (images, texts) in a model's lane before new ones get 429."
    )
    max_store_bytes: Number = Field(
        0,
        ge=0,
        description="Bytes that inputs of unfinished jobs and kept results may hold in the store before new jobs get "
        "429; 0: 70 % of Redis's `maxmemory`, or half of its machine's memory where it has none.",
    )
    max_owner_share: float = Field(
        0.5, gt=0, le=1, description="Share of these bytes that one API key may hold, where several are set."
    )
    valkey_maxmemory: Number = Field(
        0,
        ge=0,
        description="`maxmemory` of the Valkey that `clip-queue up` starts, bytes; 0: a quarter of the machine's "
        "memory, at least 256 MiB.",
    )
    interactive_jobs: bool = Field(False, description='Whether a job may ask for `"priority": "interactive"`.')
    max_attempts: Number = Field(3, ge=1, description="Workers that one job may take down before it is failed.")
    worker_threads: int = Field(
        16, ge=2, le=1024, description="Messages a worker handles at once. 2 counts as 3: one for each lane."
    )

    log_level: str = Field("INFO", description="`DEBUG`, `INFO`, `WARNING`, `ERROR`.")
    log_format: Literal["text", "json"] = Field(
        "text", description="Lines of API and workers: as uvicorn and Celery write them, or a JSON object each."
    )

    @field_validator(
        "models",
        "model_aliases",
        "fetch_allow_hosts",
        "fetch_deny_hosts",
        "fetch_allow_networks",
        "api_keys",
        "cors_origins",
        "bulk_sources",
        "bulk_outputs",
        "search",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        """Lists are comma-separated in the environment: no JSON to quote in a shell or a compose file."""
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return value

    @field_validator("data_dir", "cache_dir", mode="before")
    @classmethod
    def _blank(cls, value: object, info: ValidationInfo) -> object:
        """An empty variable is none: as a path it would be the current folder."""
        blank = isinstance(value, str) and not value.strip()
        return cls.model_fields[str(info.field_name)].default if blank else value

    @field_validator("models")
    @classmethod
    def _some_model(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("name at least one model")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _as_sent(cls, value: list[str]) -> list[str]:
        """As a browser writes an origin."""
        return [origin.lower().removesuffix("/") for origin in value]

    @field_validator("bulk_sources", "bulk_outputs")
    @classmethod
    def _roots(cls, value: list[str]) -> list[str]:
        return [root(text) for text in value]

    @field_validator("worker_threads")
    @classmethod
    def _one_a_lane(cls, value: int) -> int:
        return max(value, 3)  # with two, background and bulk would leave none to requests

    @field_validator("data_dir", "cache_dir")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        try:
            return value.expanduser() if value else value
        except RuntimeError:
            raise ValueError("the user after '~' is not known here") from None

    def env(self) -> dict[str, str]:
        """These settings as environment variables, for a child process (secrets included: never print it)."""
        out: dict[str, str] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if value is None:
                continue
            parts = value if isinstance(value, list) else [value]
            plain = [p.get_secret_value() if isinstance(p, SecretStr) else str(p) for p in parts]
            out[f"CLIP_QUEUE_{name.upper()}"] = ",".join(plain)
        return out


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The process's settings, read once."""
    return Settings()


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


START, END = "<!-- settings -->", "<!-- /settings -->"


def table() -> str:
    """The table of ``docs/settings.md``, between its markers."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
        shown = ",".join(map(str, default)) if isinstance(default, list) else default
        value = "none" if shown in (None, "") else f"`{shown}`"
        meaning = (field.description or "").replace("|", "\\|")
        rows.append(f"| `CLIP_QUEUE_{name.upper()}` | {value} | {meaning} |")
    return "\n".join([START, "| setting | default | meaning |", "|---|---|---|", *rows, END])


if __name__ == "__main__":
    print(table())  # `python -m clip_queue.shared.settings`: for docs/settings.md
