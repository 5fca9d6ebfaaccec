"""Published scores of the MosaicBERT paper against training time.

They were measured on other hardware than the runs of this repository, and are averages over all eight GLUE tasks.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PublishedCurve:
    """Published scores of one model at several training times.

    Attributes:
        name: Name of the model.
        hours: Wall-clock training times in hours.
        averages: Average scores on the development sets of GLUE at these times, 0 to 100.
        num_devices: Number of devices of the training.
        device: Name of the device.
        dollars_per_device_hour: Price of the paper, in US dollars per device and hour.
        num_tasks: Number of averaged tasks.
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
        """Label of the curve in the legend."""
        return f"{self.name}: {self.num_devices} x {self.device}, {self.num_tasks} tasks, paper (digitized)"


# Source: Figure 1B of MosaicBERT (arXiv:2312.17482), digitized with a resolution of 0.02 hours and 0.1 points. Each
# value is a mean over five pretraining seeds. The times match checkpoints after 5, 15, 25, 35, 45, 60, 70, 80, 90 and
# 100% of one schedule of 70,000 steps. All but the last were therefore saved before the end of the learning rate decay.
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
