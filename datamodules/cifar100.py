"""CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 photographs of a hundred kinds of thing."""

from typing import Any

from torchvision import datasets

from datamodules.published import Published
from networks.base import Facts

NAMES = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm""".split()  # noqa: SIM905  # a hundred lines as a literal
)


class CIFAR100(Published):
    """Colour photographs, 32 by 32, with the hundred fine labels.

    Args:
        root: folder that holds the downloads.
        augment: shift and mirror the training images.
        kwargs: see :class:`Published`.
    """

    source = datasets.CIFAR100
    folder = "cifar-100-python"
    own = Facts(
        classes=100,
        channels=3,
        size=32,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        names=NAMES,
    )

    def __init__(self, root: str = "data", augment: bool = True, **kwargs: Any) -> None:
        super().__init__(root, augment=augment, **kwargs)
