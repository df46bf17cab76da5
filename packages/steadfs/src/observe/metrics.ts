/**
 * Counters of a mount, under the metric names of the Go client (spec: command line §8), so that its dashboards go on working. They are plain
 * numbers and arrays, so that counting costs nanoseconds and nothing is loaded for it; prom-client collects them when `.stats` or /metrics is asked for
 * (exposition.ts).
 */

/** Values of the one label that a metric may have (method, errno), "" for none. */
export class Counter {
  readonly name: string;
  readonly help: string;
  readonly label: string | undefined;
  readonly values = new Map<string, number>();

  constructor(name: string, help: string, label?: string) {
    this.name = name;
    this.help = help;
    this.label = label;
    if (label === undefined) this.values.set('', 0);
  }

  inc(by = 1, value = ''): void {
    this.values.set(value, (this.values.get(value) ?? 0) + by);
  }
}

export class Gauge {
  readonly name: string;
  readonly help: string;
  /** Asked at every scrape; undefined: not shown. */
  readonly read: () => number | undefined;

  constructor(name: string, help: string, read: () => number | undefined) {
    this.name = name;
    this.help = help;
    this.read = read;
  }
}

export interface Series {
  counts: Float64Array;
  sum: number;
  total: number;
}

export class Histogram {
  readonly name: string;
  readonly help: string;
  readonly label: string | undefined;
  /** Upper bounds, ascending. */
  readonly bounds: readonly number[];
  readonly series = new Map<string, Series>();

  constructor(name: string, help: string, bounds: readonly number[], label?: string) {
    this.name = name;
    this.help = help;
    this.bounds = bounds;
    this.label = label;
    if (label === undefined) this.#of('');
  }

  #of(value: string): Series {
    let series = this.series.get(value);
    if (!series) {
      series = { counts: new Float64Array(this.bounds.length + 1), sum: 0, total: 0 };
      this.series.set(value, series);
    }
    return series;
  }

  observe(amount: number, value = ''): void {
    const series = this.#of(value);
    let low = 0;
    let high = this.bounds.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (amount <= this.bounds[middle]!) high = middle;
      else low = middle + 1;
    }
    series.counts[low]!++;
    series.sum += amount;
    series.total++;
  }
}

export type Metric = Counter | Gauge | Histogram;

/** a·b^i for i < n. */
function exponential(a: number, b: number, n: number): number[] {
  return Array.from({ length: n }, (_, i) => a * b ** i);
}

/** The metrics of a mount. Whoever does the work counts; gauges are added by whoever knows the value. */
export class Metrics {
  readonly all: Metric[] = [];

  #counter(name: string, help: string, label?: string): Counter {
    const metric = new Counter(name, help, label);
    this.all.push(metric);
    return metric;
  }

  #histogram(name: string, help: string, bounds: readonly number[], label?: string): Histogram {
    const metric = new Histogram(name, help, bounds, label);
    this.all.push(metric);
    return metric;
  }

  gauge(name: string, help: string, read: () => number | undefined): void {
    this.all.push(new Gauge(name, help, read));
  }

  readonly fuseOpsHistogram = this.#histogram(
    'fuse_ops_durations_histogram_seconds',
    'Latency of FUSE operations',
    exponential(1e-5, 1.8, 29),
  );
  readonly fuseOps = this.#counter('fuse_ops_total', 'FUSE operations', 'method');
  readonly fuseOpsSeconds = this.#counter('fuse_ops_durations_seconds', 'Time spent in FUSE operations', 'method');
  readonly fuseErrors = this.#counter('fuse_ops_io_errors', 'Failed reads and writes', 'errno');
  readonly readSize = this.#histogram(
    'fuse_read_size_bytes',
    'Size of reads',
    Array.from({ length: 32 }, (_, i) => 4096 * (i + 1)),
  );
  readonly writtenSize = this.#histogram(
    'fuse_written_size_bytes',
    'Size of writes',
    Array.from({ length: 32 }, (_, i) => 4096 * (i + 1)),
  );
  readonly objectRequests = this.#histogram(
    'object_request_durations_histogram_seconds',
    'Latency of object storage requests',
    exponential(0.01, 1.5, 25),
    'method',
  );
  readonly objectBytes = this.#counter(
    'object_request_data_bytes',
    'Bytes moved from and to the object storage',
    'method',
  );
  readonly objectErrors = this.#counter('object_request_errors', 'Failed requests to the object storage');
}

/** Adds CPU, memory and uptime of this process. */
export function addProcessGauges(metrics: Metrics, startedMs = Date.now()): void {
  metrics.gauge('cpu_usage', 'CPU time used, seconds', () => {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1e6;
  });
  metrics.gauge('memory', 'Resident memory, bytes', () => process.memoryUsage.rss());
  metrics.gauge('uptime', 'Seconds since the service started', () => (Date.now() - startedMs) / 1000);
}

export const PREFIX = 'juicefs_';
