"""The points that the paper published, for comparison. Measured on other machines, and averaged over all tasks."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PublishedCurve:
    """A published curve.

    Attributes:
        name: of the model.
        hours: of training, wall-clock.
        averages: of GLUE's eight development sets, 0 to 100.
        devices: that trained it.
        device: their name.
        dollars_per_device_hour: the price that the paper reckons with.
        num_tasks: in the averages.
    """

    name: str
    hours: tuple[float, ...]
    averages: tuple[float, ...]
    num_devices: int = 8
    device: str = "A100"
    dollars_per_device_hour: float = 2.50
    num_tasks: int = 8

    @property
    def dollars(self) -> tuple[float, ...]:
        return tuple(hours * self.num_devices * self.dollars_per_device_hour for hours in self.hours)

    @property
    def label(self) -> str:
        """For a legend."""
        return f"{self.name}: {self.num_devices} x {self.device}, {self.num_tasks} tasks, paper (digitised)"


# Figure 1B of MosaicBERT (arXiv:2312.17482), read off its picture to 0.02 hours and 0.1 points. Each is a mean of five
# pretraining seeds. Their distances fit checkpoints after 5, 15, 25, 35, 45, 60, 70, 80, 90 and 100% of one schedule of
# 70,000 steps: all but the last were taken before the learning rate had come down.
PUBLISHED_CURVES = (
    PublishedCurve(
        name="MosaicBERT-Base",
        hours=(0.49, 1.45, 2.41, 3.37, 4.35, 5.79, 6.75, 7.71, 8.69, 9.65),
        averages=(76.1, 80.7, 81.8, 82.5, 83.0, 83.5, 83.9, 84.0, 84.0, 84.3),
    ),
    PublishedCurve(
        name="BERT-Base",
        hours=(0.55, 1.65, 2.75, 3.85, 4.97, 6.61, 7.71, 8.82, 9.93, 11.03),
        averages=(72.6, 79.9, 81.0, 81.6, 82.1, 82.9, 83.0, 83.1, 83.1, 83.5),
    ),
)
