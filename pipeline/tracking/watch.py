"""System metrics of a run (CPU, memory, disk, network, GPU): MLflow's monitors measure them, the journal stores them."""

from __future__ import annotations

import threading

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from pipeline.tracking.journal import SYSTEM, Journal


class Watch(SystemMetricsMonitor):
    """MLflow's monitors, writing to the journal instead of a server. `first`: the step of the first values."""

    def __init__(self, run_id: str, journal: Journal, first: int) -> None:
        super().__init__(run_id)  # type: ignore[no-untyped-call]
        self._journal, self._logging_step = journal, first
        self._thread = threading.Thread(target=self._measure, daemon=True)
        self._thread.start()

    def _measure(self) -> None:
        while not self._shutdown_event.is_set():
            for _ in range(self.samples_before_logging):
                self.collect_metrics()  # type: ignore[no-untyped-call]
                if self._shutdown_event.wait(self.sampling_interval):
                    return
            self.publish_metrics(self.aggregate_metrics())  # type: ignore[no-untyped-call]

    def publish_metrics(self, metrics: dict[str, float]) -> None:
        """Writes the measured values to the journal."""
        prefix = self._metrics_prefix + (f"{self.node_id}/" if self.node_id else "")
        values = {f"{prefix}{name}": value for name, value in metrics.items()}
        self._journal.write({"step": self._logging_step, "metrics": values}, SYSTEM)
        self._logging_step += 1
        for monitor in self.monitors:
            monitor.clear_metrics()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """Stops measuring."""
        self._shutdown_event.set()
        self._thread.join(5)
