"""Sentences around a name: those of training, and those held out for measuring.

The held-out sentences are not used in training, and neither are most of their words. Some are words that
belong to other concepts ("one", "frame", "grandmother"), as in what people write.
"""

from open_clip import OPENAI_IMAGENET_TEMPLATES

OPENAI = tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)

OWN = (
    "a {}",
    "an {}",
    "the {}",
    "one {}",
    "two {s}",
    "three {s}",
    "many {s}",
    "some {s}",
    "my {}",
    "{s}",
    "emoji {}",
    "{} emoji",
    "an emoji of a {}",
    "the {} emoji",
    "emoji showing a {}",
    "an emoji that shows {}",
    "an icon of a {}",
    "a {} icon",
    "a symbol for {}",
    "a sticker of a {}",
    "a logo of a {}",
    "clip art of a {}",
    "a cartoon {}",
    "a picture of a {}",
    "a picture of {}",
    "an image of a {}",
    "an image of {}",
    "image of {}",
    "picture: {}",
    "photo: {}",
    "a photo of {}",
    "photo of {}",
    "photo of one {}",
    "a photograph of a {}",
    "an illustration of a {}",
    "a sketch of {}",
    "a cute {}",
    "a small picture of a {}",
    "a large {}",
    "a simple drawing of {}",
    "this is a {}",
    "this is {}",
    "it is a {}",
    "that looks like a {}",
    "here is a {}",
    "there is a {}",
    "there is a {} here",
    "there are {s} here",
    "i see a {}",
    "you can see a {}",
    "we see {}",
    "what a {}",
    "look at the {}",
    "find the {}",
    "show me a {}",
    "show me {}",
    "please find a {} for me",
    "a {} on a white background",
    "a {} on white",
    "a {} in the middle",
    "{} on a plain background",
    "{} in the picture",
    "{} seen from the front",
    "{} drawn by hand",
    "{} in bright colours",
    "{} in colour",
    "{} in black and white",
    "the word for this is {}",
    "something like a {}",
    "a kind of {}",
    "a type of {}",
    "an object called {}",
    "a thing called {}",
    "the {} of my friend",
    "a very nice {}",
    "a big {}",
    "a little {}",
    "an old {}",
    "a new {}",
    "a beautiful {}",
    "a funny {}",
    "a single {}",
    "only a {}",
    "just a {}",
    "{} only",
    "{} please",
    "a {} that i like",
    "a {} which is there",
    "a {} for you",
    "a {} to use in a message",
    "a digital painting of a {}",
    "a low quality image of a {}",
    "a high quality image of a {}",
    "{}, vector art",
    "{}, flat design",
    "{} - stock picture",
    '"{}"',
    "({})",
    "{}!",
    "{}?",
    "{}.",
    "#{}",
    "{} :)",
)

TRAINING = OPENAI + OWN

_FILLERS = """
a an the this that these those it is are was were be been has have had do does did can could will would may
might must should of in on at by for from to with into over under about as than then so and or but if because
while when where who which what how very really quite just only also too even still again already my your his
her its our their me you him them us i we they he she some any each every all both few many much more most
other another such same own next last here there now today always often sometimes near far behind beside
between around through during before after one two three four several single good great nice small little tiny
large huge long short old new young clear dark bright plain simple common strange typical picture image photo
drawing art style version view kind type sort thing example scene background shown seen made like looks
looking called named using used want need see look show find get give make take
"""
# Common words that may stand beside a name without meaning anything of it.
FILLERS = _FILLERS.split()

HELD_OUT = (
    "a blurry snapshot showing one {}",
    "an amateur snapshot depicting the {}",
    "somebody painted {} yesterday",
    "hmm, apparently another {} appears within our frame",
    "{} captured indoors using cheap equipment",
    "screenshot containing exactly one {} and nothing else whatsoever",
    "our grandmother would recognise {} immediately",
    "illustrator's rough concept, subject: {}",
    "{}, minimalistic, trending",
    "does anybody remember {}?",
    "caption reads {}",
    "thumbnail {} 0042 final",
)

# Prompts as a person may type them, with the names that would be a right answer.
FREE_FORM = (
    ("a blurry snapshot showing one dog", ("dog", "dog face", "poodle", "guide dog", "service dog")),
    ("my neighbour's dog sleeping peacefully", ("dog", "dog face", "poodle", "guide dog", "service dog")),
    ("delicious pizza straight from our oven", ("pizza",)),
    ("a rocket launching toward outer space", ("rocket",)),
    ("yummy chocolate cookies fresh baked", ("cookie", "chocolate bar")),
    ("somebody playing an electric guitar loudly", ("guitar",)),
    ("an elephant walking across dusty savannah", ("elephant",)),
    ("vintage bicycle leaning against brick wall", ("bicycle",)),
    ("huge whale jumping above waves", ("whale", "spouting whale")),
    ("colourful umbrella during heavy rain", ("umbrella", "umbrella with rain drops", "closed umbrella")),
    ("a steaming mug with hot coffee", ("hot beverage",)),
    ("adorable kitten", ("cat", "cat face", "grinning cat", "black cat", "smiling cat with heart-eyes", "kissing cat")),
    ("tropical island holiday with palm trees", ("palm tree", "desert island", "beach with umbrella")),
    ("a really scary ghost haunting some castle", ("ghost", "castle", "japanese castle")),
    (
        "someone crying because they're terribly sad",
        ("crying face", "loudly crying face", "sad but relieved face", "face holding back tears", "crying cat"),
    ),
    ("birthday cake with lit candles", ("birthday cake", "shortcake", "candle")),
    ("red sports car racing fast", ("racing car", "automobile", "oncoming automobile")),
    ("snake hiding amongst tall grass", ("snake",)),
    ("shiny golden trophy awarded yesterday", ("trophy",)),
    ("sunflower growing within my garden", ("sunflower",)),
    ("christmas tree decorated nicely", ("christmas tree",)),
    ("a banana that nobody wants", ("banana",)),
    ("freshly picked strawberries", ("strawberry",)),
    ("firefighters' truck arriving", ("fire engine",)),
    ("cowboy wearing enormous hat", ("cowboy hat face",)),
)
