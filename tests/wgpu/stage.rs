//! Devices for the tests, and the one shader that they run.

use larder::wgpu::api::{
    self, BindGroupDescriptor, BindGroupEntry, BindingResource, CommandEncoder, ComputePipeline, Device,
    DeviceDescriptor, Limits, Queue,
};
use larder::wgpu::{Backing, OpenError, Wgpu, WgpuConfig, over};
use larder::{Allocator, Block, Config};

/// An allocator, with the backend beneath it to look at.
pub struct Stage {
    pub gpu: Allocator<Wgpu>,
    pub backing: Backing,
}

impl Stage {
    /// With segments as small as the config says: buffers without a device are made of zeros at once.
    pub fn over(device: (Device, Queue), config: Config) -> Stage {
        Stage::with(device, WgpuConfig { segment_min: 0, ..WgpuConfig::default() }, config)
    }

    pub fn with((device, queue): (Device, Queue), wgpu: WgpuConfig, config: Config) -> Stage {
        let backing = Backing::new(&device, &queue, wgpu).unwrap();
        Stage { gpu: over(&backing, config).unwrap(), backing }
    }

    pub fn device(&self) -> &Device {
        self.gpu.device()
    }

    pub fn encoder(&self) -> CommandEncoder {
        self.device().create_command_encoder(&Default::default())
    }
}

/// wgpu without a device.
pub fn noop(limits: Limits) -> (Device, Queue) {
    Device::noop(&DeviceDescriptor { required_limits: limits, ..Default::default() })
}

/// A device of the best adapter with its limits, some of them lowered; `None`, and said so, where there is none.
pub fn adapter(lower: impl FnOnce(&mut Limits)) -> Option<(Device, Queue)> {
    match larder::wgpu::best(Config::default()) {
        Ok(_) => {}
        Err(error) if std::env::var("LARDER_REQUIRE_WGPU").is_ok_and(|value| value == "1") => panic!("{error}"),
        Err(error @ OpenError::NoAdapter { .. }) => {
            println!("not run: {error}");
            return None;
        }
        Err(error) => panic!("{error}"),
    }
    let best = &larder::wgpu::adapters()[0];
    let instance = api::Instance::new(api::InstanceDescriptor::new_without_display_handle());
    let adapters = pollster::block_on(instance.enumerate_adapters(api::Backends::PRIMARY));
    let adapter = adapters.iter().find(|adapter| adapter.get_info().name == best.name).unwrap();
    let mut required_limits = adapter.limits();
    lower(&mut required_limits);
    let memory_hints = api::MemoryHints::MemoryUsage;
    let device = DeviceDescriptor { required_limits, memory_hints, ..Default::default() };
    Some(pollster::block_on(adapter.request_device(&device)).unwrap())
}

/// On everything that copies.
pub fn stages(config: &Config) -> impl Iterator<Item = Stage> {
    let adapter = adapter(|_| {});
    [Some(noop(Limits::default())), adapter].into_iter().flatten().map(|device| Stage::over(device, config.clone()))
}

/// `to[i] = from[i] * 3 + 1`, with the source bound as `access` says.
pub fn pipeline(device: &Device, access: &str) -> ComputePipeline {
    let source = format!(
        "@group(0) @binding(0) var<storage, {access}> from_words: array<u32>;
         @group(0) @binding(1) var<storage, read_write> to_words: array<u32>;
         @compute @workgroup_size(64)
         fn main(@builtin(global_invocation_id) id: vec3<u32>) {{
             if id.x < arrayLength(&to_words) {{ to_words[id.x] = from_words[id.x] * 3u + 1u; }}
         }}"
    );
    let source = api::ShaderSource::Wgsl(source.into());
    let module = device.create_shader_module(api::ShaderModuleDescriptor { label: None, source });
    device.create_compute_pipeline(&api::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &module,
        entry_point: None,
        compilation_options: Default::default(),
        cache: None,
    })
}

/// What [`pipeline`] makes of one word.
pub fn made_of(word: u32) -> u32 {
    word.wrapping_mul(3).wrapping_add(1)
}

pub fn dispatch(
    device: &Device,
    encoder: &mut CommandEncoder,
    pipeline: &ComputePipeline,
    bindings: [BindingResource<'_>; 2],
    words: u64,
) {
    let [from, to] = bindings;
    let entries = [BindGroupEntry { binding: 0, resource: from }, BindGroupEntry { binding: 1, resource: to }];
    let layout = pipeline.get_bind_group_layout(0);
    let group = device.create_bind_group(&BindGroupDescriptor { label: None, layout: &layout, entries: &entries });
    let mut pass = encoder.begin_compute_pass(&Default::default());
    pass.set_pipeline(pipeline);
    pass.set_bind_group(0, &group, &[]);
    pass.dispatch_workgroups(words.div_ceil(64) as u32, 1, 1);
}

/// Where a block lies.
pub fn place(block: &Block<Wgpu>) -> (larder::ids::RegionId, u64) {
    let span = block.span().unwrap();
    (span.region, span.offset)
}
