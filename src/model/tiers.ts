// What a tier is: the machine behind it and the words that the public API has for it. Prices and activity are the
// contract's (`getTierConfig`), never ours.

export const TIER_COUNT = 8;

/** `gcp` and `gpu-external` are names of the first backend that clients depend on; they appear on the wire alone. */
export type VmType = "vm" | "gpu";
export type WireType = "gcp" | "gpu-external";

export type TierSpec = {
  type: VmType;
  specs: { vcpu: number; memoryGb: number; gpu: string | null; diskGb: number };
};

const vm = (vcpu: number, memoryGb: number, diskGb: number): TierSpec => ({
  type: "vm",
  specs: { vcpu, memoryGb, gpu: null, diskGb },
});

// A pod's CPU and memory vary by host; these are the least that RunPod sells with the card.
const gpu = (name: string, vcpu: number, memoryGb: number): TierSpec => ({
  type: "gpu",
  specs: { vcpu, memoryGb, gpu: name, diskGb: 40 },
});

export const TIERS: readonly TierSpec[] = [
  vm(1, 1, 25),
  vm(1, 2, 55),
  vm(2, 4, 80),
  vm(4, 8, 160),
  gpu("NVIDIA GeForce RTX 4090", 8, 24),
  gpu("NVIDIA A100 40GB", 8, 64),
  gpu("NVIDIA A100 80GB PCIe", 8, 96),
  gpu("NVIDIA H100 PCIe", 16, 128),
];

export const wireType = (type: VmType): WireType => (type === "gpu" ? "gpu-external" : "gcp");

/** Where a VM may be asked for; the vendor's regions in the order in which they are tried. GPUs are wherever they are. */
export const REGIONS = {
  "us-east": ["ewr", "mia", "atl", "ord"],
  "us-west": ["lax", "sea", "sjc"],
  europe: ["ams", "fra", "lhr", "cdg", "mad", "sto", "waw", "man"],
  asia: ["sgp", "nrt", "icn", "itm", "bom", "del", "blr"],
} as const;
export type Region = keyof typeof REGIONS;
export const REGION_NAMES = Object.keys(REGIONS) as [Region, ...Region[]];
