/** What `.stats` and /metrics show, by a registry of prom-client that collects the plain numbers of metrics.ts. Loaded when somebody asks. */
import type { Metric, MetricObjectWithValues, MetricValueWithName } from 'prom-client';
import PromCounter from 'prom-client/lib/counter.js';
import PromGauge from 'prom-client/lib/gauge.js';
import Registry from 'prom-client/lib/registry.js';
import { Counter, Gauge, type Histogram, type Metrics, PREFIX } from './metrics.ts';

type Values = Omit<MetricObjectWithValues<MetricValueWithName<string>>, 'collect'>;

const registries = new WeakMap<Metrics, Registry>();

/** The registry of these metrics; what was added to them since the last call is registered. */
function registryOf(metrics: Metrics): Registry {
  let registry = registries.get(metrics);
  if (!registry) {
    registry = new Registry();
    registries.set(metrics, registry);
  }
  for (const metric of metrics.all) {
    if (registry.getSingleMetric(PREFIX + metric.name)) continue;
    if (metric instanceof Gauge) addGauge(registry, metric);
    else if (metric instanceof Counter) addCounter(registry, metric);
    else addHistogram(registry, metric);
  }
  return registry;
}

function addGauge(registry: Registry, gauge: Gauge): void {
  new PromGauge({
    name: PREFIX + gauge.name,
    help: gauge.help,
    registers: [registry],
    collect() {
      const now = gauge.read();
      if (now === undefined) this.remove();
      else this.set(now);
    },
  });
}

function addCounter(registry: Registry, counter: Counter): void {
  const { name, help, label } = counter;
  new PromCounter({
    name: PREFIX + name,
    help,
    labelNames: label ? [label] : [],
    registers: [registry],
    collect() {
      this.reset();
      for (const [value, count] of counter.values) this.inc(label ? { [label]: value } : {}, count);
    },
  });
}

/** prom-client's own histogram only counts one observation at a time; the registry takes whatever answers get(). */
function addHistogram(registry: Registry, histogram: Histogram): void {
  const name = PREFIX + histogram.name;
  const { help, label, bounds } = histogram;
  const get = async (): Promise<Values> => {
    const values: MetricValueWithName<string>[] = [];
    for (const [value, series] of histogram.series) {
      const labels = label ? { [label]: value } : {};
      let below = 0;
      bounds.forEach((le, i) => {
        below += series.counts[i]!;
        values.push({ metricName: `${name}_bucket`, labels: { ...labels, le }, value: below });
      });
      values.push(
        { metricName: `${name}_bucket`, labels: { ...labels, le: '+Inf' }, value: series.total },
        { metricName: `${name}_sum`, labels, value: series.sum },
        { metricName: `${name}_count`, labels, value: series.total },
      );
    }
    return { name, help, type: 'histogram' as unknown as Values['type'], aggregator: 'sum', values };
  };
  registry.registerMetric({ name, help, type: 'histogram', get } as unknown as Metric);
}

/** Text of /metrics in Prometheus' format, version 0.0.4; every sample has `labels`. */
export async function metricsText(metrics: Metrics, labels: Record<string, string>): Promise<string> {
  const registry = registryOf(metrics);
  registry.setDefaultLabels(labels);
  return registry.metrics();
}

/** The text of `.stats`: `metric[_label value] number`; of histograms the number and the sum. */
export async function statsText(metrics: Metrics): Promise<string> {
  const registry = registryOf(metrics);
  const lines: string[] = [];
  for (const metric of metrics.all) {
    const name = PREFIX + metric.name;
    const of = (value: string) => (value === '' ? name : `${name}_${value}`);
    const { values } = (await registry.getSingleMetric(name)!.get()) as Values;
    const label = (sample: MetricValueWithName<string>) =>
      'label' in metric && metric.label ? String(sample.labels[metric.label]) : '';
    if ('series' in metric) {
      for (const [i, sample] of values.entries())
        if (sample.metricName === `${name}_sum`)
          lines.push(`${of(label(sample))}_total ${values[i + 1]!.value}`, `${of(label(sample))}_sum ${sample.value}`);
    } else for (const sample of values) lines.push(`${of(label(sample))} ${sample.value}`);
  }
  return `${lines.join('\n')}\n`;
}
