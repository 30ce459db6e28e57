"""The inference engine of a worker process: it takes encoded images and texts, item by item, and returns features.

::

    item ─┬─ text ───► tokens ─┬─► batcher ─► forward pass ─► recipient
          └─ image ──► pixels ─┘   (in a thread, or in a helper process where the cost is not known to be small)
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from PIL import Image

from clip_queue.shared.errors import ClipError
from clip_queue.shared.lane import Lane
from clip_queue.shared.models import NOTICES, ModelSpec, parse_models
from clip_queue.shared.settings import Settings, cores
from clip_queue.shared.vectors import Pixels, Vector
from clip_queue.worker.inference.batcher import Batcher
from clip_queue.worker.inference.clip_model import ClipModel
from clip_queue.worker.inference.decode import decoded, preprocessed
from clip_queue.worker.inference.decode_helpers import DecodeHelpers, Unwanted
from clip_queue.worker.inference.device import pick_device
from clip_queue.worker.inference.fatal import die
from clip_queue.worker.inference.gpu import Gpu
from clip_queue.worker.inference.image_limits import Limits, examine
from clip_queue.worker.inference.item import BatchItem, Recipient
from clip_queue.worker.inference.pass_threads import PassThreads
from clip_queue.worker.inference.priority import Share
from clip_queue.worker.inference.text_cache import TextCache
from clip_queue.worker.inference.thread_pool import PriorityThreadPool
from clip_queue.worker.inference.warm_up import warm_up

log = logging.getLogger(__name__)

# Decoding gives way to the forward pass and to the API: a pass that waits for a core holds up all that wait for it, and
# a core that has nothing else to do decodes as fast as before. Helpers, which have a deadline, do not inherit it.
DECODE_NICE = 10
BESIDE_NICE = 10  # of passes that no caller waits for

# Whoever waits for an answer waits for no pass of another lane, where the kernel can take the cores from it.
CPU_SHARES = (Share((Lane.INTERACTIVE,)), Share((Lane.BACKGROUND, Lane.BULK), BESIDE_NICE))

LoadModel = Callable[[ModelSpec, Settings], ClipModel]


class InferenceEngine:
    """The engine of one process, for many threads.

    The items inside the engine are bounded in each lane, because decoded images take memory. So the caller must
    :meth:`acquire` a place before it passes an item to :meth:`embed`. The engine releases the place when the item
    leaves.
    """

    def __init__(
        self, settings: Settings, load_model: LoadModel = ClipModel, helpers: DecodeHelpers | None = None
    ) -> None:
        """Load the models of ``settings``. Raises what open_clip raises if one cannot be loaded."""
        self.settings = settings
        self.device = pick_device(settings.device)
        self.gpu = Gpu(self.device)
        self.models = {name: load_model(spec, settings) for name, spec in parse_models(settings.models).items()}
        cuda = self.device.type == "cuda"
        batch = settings.batch_size or (256 if cuda else 32)
        for model in self.models.values() if cuda else ():
            warm_up(model, batch)
        self.passes = {model.info.name: PassThreads(model, batch) for model in self.models.values()}
        background = settings.background_batch_size or (batch if cuda else min(8, batch))
        self.capacity = 4 * batch  # items inside the engine, per lane
        self.batcher = Batcher(
            {Lane.INTERACTIVE: batch, Lane.BACKGROUND: background, Lane.BULK: 1},  # a bulk item is a whole batch
            capacity=self.capacity,
            fatal=die,
            depth=1 if cuda else 0,
            shares=CPU_SHARES if self.device.type == "cpu" else (Share(),),
        )
        self.decoders = PriorityThreadPool(settings.decode_threads or cores(), fatal=die, nice=DECODE_NICE)
        self.limits = Limits(settings.max_image_bytes, settings.max_image_pixels, settings.max_image_work)
        self.helpers = helpers or DecodeHelpers(settings.decode_processes, self.limits, settings.decode_timeout)
        # Threads that wait for a helper, apart from those above: what is slow to decode holds up its like alone.
        self._askers = PriorityThreadPool(settings.decode_processes, fatal=die, name="decode-helper")
        self._places = {lane: threading.BoundedSemaphore(self.capacity) for lane in Lane}
        self.text_cache = TextCache(settings.text_cache_size)
        Image.MAX_IMAGE_PIXELS = settings.max_image_pixels  # Pillow checks the limit too

    def start(self) -> None:
        """Start the threads."""
        for model in self.models.values():
            log.info("serving %s (%s, %s, %s)", model.info.name, model.info.source, model.precision, self.device)
            if notice := NOTICES.get(model.info.name):
                log.warning(notice)
        self.batcher.start()
        self.decoders.start()
        self._askers.start()

    def stop(self, timeout: float = 5.0) -> None:
        """End the threads when all items have been decoded. Waits up to ``timeout`` seconds for each thread."""
        self.decoders.stop(timeout)
        self._askers.stop(timeout)
        self.helpers.close()
        self.batcher.stop(timeout)

    def acquire(self, lane: Lane, timeout: float) -> bool:
        """Take a place for one item of a lane. False if none becomes free within ``timeout`` seconds."""
        return self._places[lane].acquire(timeout=timeout)

    def release(self, lane: Lane) -> None:
        """Give back a place that was taken for an item which is not passed to :meth:`embed`."""
        self._places[lane].release()

    def embed(
        self,
        model: ClipModel,
        lane: Lane,
        item: bytes | str,
        recipient: Recipient,
        owner: str = "",
        *,
        cut: bool = False,
        lone: bool = False,
        gathered: list[BatchItem] | None = None,
    ) -> None:
        """Embed an encoded image or a text that has a place. ``recipient`` gets the features or the error.

        Args:
            owner: on whose behalf; features in the cache are for the same owner only.
            cut: of a text that is longer than the model takes, embed the beginning.
            lone: the caller has no other item, so its thread decodes this one, unless a helper has to.
            gathered: a text that is ready goes there and waits, with its place, for :meth:`begin`.
        """
        if isinstance(item, str):
            if ready := self._ready_text(model, lane, item, recipient, owner, cut):
                if gathered is None:
                    self.batcher.put(ready)
                else:
                    gathered.append(ready)
            return
        if lone:
            self.decoders.run(lane, lambda: self._embed_image(model, lane, item, recipient))
        else:
            self.decoders.submit(lane, lambda: self._embed_image(model, lane, item, recipient))

    def begin(self, gathered: list[BatchItem]) -> None:
        """Pass on texts of one lane that :meth:`embed` has gathered. The list is empty then."""
        if gathered:
            self.batcher.put_all(gathered)
            gathered.clear()

    def decode(self, model: ClipModel, lane: Lane, data: bytes, unwanted: Callable[[], bool]) -> Future[Pixels]:
        """Decode and preprocess an image for ``model``: pixels (height, width, 3), uint8.

        The future is cancelled if the image is ``unwanted`` by the time that it would be decoded. It holds a
        :class:`BadImage` if the image is over a limit of the settings, or no image. What waits is not bounded here.
        """
        pixels: Future[Pixels] = Future()

        def attempt(work: Callable[[], None]) -> None:
            if unwanted():
                pixels.cancel()
                return
            try:
                work()
            except Exception as error:
                pixels.set_exception(error)

        def ask() -> None:
            image = self.helpers.to_rgb(data, model.draft)
            pixels.set_result(preprocessed(image, model.preprocess))

        def begin() -> None:
            file = examine(data, self.limits)
            if file.in_thread:
                pixels.set_result(decoded(file, model.preprocess, self.limits, model.draft))
            else:
                self._askers.submit(lane, lambda: attempt(ask))

        self.decoders.submit(lane, lambda: attempt(begin))
        return pixels

    def _ready_text(
        self, model: ClipModel, lane: Lane, text: str, recipient: Recipient, owner: str, cut: bool
    ) -> BatchItem | None:
        """A text as an item of the batcher; None if the recipient has its features, or its error, already."""
        began = time.monotonic()
        cached = self.text_cache.get(owner, model.fingerprint, text)
        if cached is not None:
            self.release(lane)
            recipient.resolve(cached, {"prepare": time.monotonic() - began, "wait": 0.0, "forward": 0.0})
            return None
        try:
            tokens = model.tokenizer.cut(text) if cut else model.tokenizer(text)
        except Exception as error:  # also those of the tokenizer: an item's error must not end the thread
            self.release(lane)
            if not isinstance(error, ClipError):
                log.exception("a text could not be tokenised")
                error = ClipError(f"The text could not be tokenised ({type(error).__name__}).")
            recipient.fail(error)
            return None

        def leave(features: Vector | None) -> None:
            self.release(lane)
            # What may have been cut is not remembered: to a request that does not cut, the text is an error.
            if features is not None and not (cut and len(tokens) >= model.tokenizer.context_length):
                self.text_cache.put(owner, model.fingerprint, text, features)

        return BatchItem(recipient, lane, self.passes[model.info.name].texts, tokens, began, leave)

    def _embed_image(self, model: ClipModel, lane: Lane, data: bytes, recipient: Recipient) -> None:
        """Decode an image and pass it to the batcher; in a decoding thread."""
        began = time.monotonic()
        if self._passed_over(lane, recipient):
            return
        try:
            file = examine(data, self.limits)
        except ClipError as error:
            self.release(lane)
            recipient.fail(error)
            return
        if file.in_thread:
            self._decode(
                model, lane, lambda: decoded(file, model.preprocess, self.limits, model.draft), recipient, began
            )
            return

        def load() -> Pixels:
            image = self.helpers.to_rgb(data, model.draft, lambda: not recipient.gone)
            return preprocessed(image, model.preprocess)

        def ask() -> None:
            if not self._passed_over(lane, recipient):
                self._decode(model, lane, load, recipient, began)

        self._askers.submit(lane, ask)

    def _passed_over(self, lane: Lane, recipient: Recipient) -> bool:
        """Whether nobody waits for the image any more: it is not decoded then."""
        if not recipient.gone:
            return False
        recipient.drop()
        self.release(lane)
        return True

    def _decode(
        self,
        model: ClipModel,
        lane: Lane,
        load: Callable[[], Pixels],
        recipient: Recipient,
        began: float,
    ) -> None:
        try:
            pixels = load()
        except Unwanted:
            self._passed_over(lane, recipient)
            return
        except ClipError as error:
            self.release(lane)
            recipient.fail(error)
            return
        self.batcher.put(
            BatchItem(recipient, lane, self.passes[model.info.name].images, pixels, began, lambda _: self.release(lane))
        )
