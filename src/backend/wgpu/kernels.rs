//! Kernels for memory itself: fill, and copies within one buffer, which wgpu's own copy refuses.
//!
//! Knows buffers and offsets, not segments. A job is cut into pieces that a binding of this device can hold; each is one dispatch with
//! a few bytes of its own to say what it does.

use std::num::NonZeroU64;

use wgpu::{
    BindGroupEntry, BindGroupLayout, BindGroupLayoutEntry, BindingType, BufferBinding, BufferBindingType,
    BufferDescriptor, BufferUsages, CommandEncoder, ComputePipeline, Limits, ShaderStages,
};

use super::driver::Driver;
use crate::backend::BackendError;
use crate::units::align_down;

/// Invocations of a group, as the shaders say.
const GROUP: u64 = 256;

/// Bytes of a binding at most, whatever the device allows: drivers count in 32 bits, some with a sign.
const BINDING_MAX: u64 = 1 << 31;

/// One shader with its layout.
struct Kernel {
    layout: BindGroupLayout,
    pipeline: ComputePipeline,
}

/// The kernels, made for one device.
pub(super) struct Kernels {
    fill: Kernel,
    copy: Kernel,
    /// The alignment of a binding's offset.
    align: u64,
    /// Bytes of a binding at most; at least `align`, so that one holds a word wherever that lies.
    binding_max: u64,
    groups_max: u64,
}

impl Kernels {
    pub fn new(driver: &Driver, limits: &Limits) -> Result<Kernels, BackendError> {
        let align = u64::from(limits.min_storage_buffer_offset_alignment).max(4);
        let binding_max = align_down(limits.max_storage_buffer_binding_size.min(BINDING_MAX), 4);
        if binding_max < align {
            let reason = format!("bindings of {binding_max} bytes at multiples of {align} do not reach every word");
            return Err(BackendError::Driver { call: "create_compute_pipeline", reason, code: 0 });
        }
        Ok(Kernels {
            fill: Kernel::new(driver, "larder fill", include_str!("../../../shaders/fill.wgsl"), 1)?,
            copy: Kernel::new(driver, "larder copy", include_str!("../../../shaders/copy.wgsl"), 2)?,
            align,
            binding_max,
            groups_max: limits.max_compute_workgroups_per_dimension.into(),
        })
    }

    /// Sets `size` bytes of a buffer to one word. Offset and size are multiples of 4.
    pub fn fill(
        &self,
        driver: &Driver,
        encoder: &mut CommandEncoder,
        (buffer, offset): (&wgpu::Buffer, u64),
        size: u64,
        value: u32,
    ) -> Result<(), BackendError> {
        self.pieces([offset], size, |[(start, skip)], piece| {
            let job = [(skip / 4) as u32, (piece / 4) as u32, value, 0];
            self.dispatch(driver, encoder, &self.fill, buffer, &[(start, skip + piece)], job)
        })
    }

    /// Copies `size` bytes within a buffer, between ranges that do not overlap. Offsets and size are multiples of 4.
    pub fn copy(
        &self,
        driver: &Driver,
        encoder: &mut CommandEncoder,
        buffer: &wgpu::Buffer,
        (from, to): (u64, u64),
        size: u64,
    ) -> Result<(), BackendError> {
        self.pieces([from, to], size, |[(from, skipped), (to, skip)], piece| {
            let job = [(skipped / 4) as u32, (skip / 4) as u32, (piece / 4) as u32, 0];
            self.dispatch(driver, encoder, &self.copy, buffer, &[(from, skipped + piece), (to, skip + piece)], job)
        })
    }

    /// Cuts `size` bytes at each of the offsets into pieces. Each offset is given as that of a binding and the bytes to skip in it.
    fn pieces<const N: usize>(
        &self,
        offsets: [u64; N],
        size: u64,
        mut each: impl FnMut([(u64, u64); N], u64) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        let mut done = 0;
        while done < size {
            let places = offsets.map(|offset| {
                let start = align_down(offset + done, self.align);
                (start, offset + done - start)
            });
            let skipped = places.iter().map(|(_, skip)| *skip).max().unwrap_or(0);
            let piece = (size - done).min(self.binding_max - skipped);
            each(places, piece)?;
            done += piece;
        }
        Ok(())
    }

    fn dispatch(
        &self,
        driver: &Driver,
        encoder: &mut CommandEncoder,
        kernel: &Kernel,
        buffer: &wgpu::Buffer,
        ranges: &[(u64, u64)],
        job: [u32; 4],
    ) -> Result<(), BackendError> {
        let count = if ranges.len() == 1 { job[1] } else { job[2] };
        let groups = u64::from(count).div_ceil(GROUP);
        let across = groups.min(self.groups_max);
        let down = groups.div_ceil(across);
        driver.scoped("dispatch", 0, || {
            let job = job_buffer(driver, job)?;
            let mut entries: Vec<BindGroupEntry<'_>> = ranges
                .iter()
                .zip(0..)
                .map(|((offset, size), binding)| {
                    let size = NonZeroU64::new(*size);
                    let range = BufferBinding { buffer, offset: *offset, size };
                    BindGroupEntry { binding, resource: wgpu::BindingResource::Buffer(range) }
                })
                .collect();
            entries.push(BindGroupEntry { binding: ranges.len() as u32, resource: job.as_entire_binding() });
            let group = wgpu::BindGroupDescriptor { label: None, layout: &kernel.layout, entries: &entries };
            let group = driver.device.create_bind_group(&group);
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(&kernel.pipeline);
            pass.set_bind_group(0, &group, &[]);
            pass.dispatch_workgroups(across as u32, down as u32, 1);
            Ok(())
        })?
    }
}

/// The few bytes that tell a dispatch what to do.
fn job_buffer(driver: &Driver, job: [u32; 4]) -> Result<wgpu::Buffer, BackendError> {
    let bytes: &[u8] = bytemuck::cast_slice(&job);
    let usage = BufferUsages::UNIFORM;
    let size = bytes.len() as u64;
    let buffer = BufferDescriptor { label: Some("larder job"), size, usage, mapped_at_creation: true };
    let buffer = driver.create("dispatch", &buffer)?;
    match buffer.get_mapped_range_mut(..) {
        Ok(mut view) => view.copy_from_slice(bytes),
        Err(error) => return Err(super::staging::unmappable(driver, &error)),
    }
    buffer.unmap();
    Ok(buffer)
}

impl Kernel {
    /// A kernel over so many ranges of storage and its job.
    fn new(driver: &Driver, label: &'static str, source: &'static str, ranges: u32) -> Result<Kernel, BackendError> {
        let device = &driver.device;
        let label = Some(label);
        let entry = |binding, ty| BindGroupLayoutEntry {
            binding,
            visibility: ShaderStages::COMPUTE,
            ty: BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
            count: None,
        };
        let storage = BufferBindingType::Storage { read_only: false };
        let mut entries: Vec<BindGroupLayoutEntry> = (0..ranges).map(|binding| entry(binding, storage)).collect();
        entries.push(entry(ranges, BufferBindingType::Uniform));
        driver.scoped("create_compute_pipeline", 0, || {
            let source = wgpu::ShaderSource::Wgsl(source.into());
            let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label, source });
            let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
            let all = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label,
                bind_group_layouts: &[Some(&layout)],
                immediate_size: 0,
            });
            let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label,
                layout: Some(&all),
                module: &module,
                entry_point: Some("main"),
                compilation_options: Default::default(),
                cache: None,
            });
            Kernel { layout, pipeline }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::GIB;

    fn kernels(align: u32, binding: u64) -> Result<Kernels, BackendError> {
        let (device, queue) = wgpu::Device::noop(&Default::default());
        let (min_storage_buffer_offset_alignment, max_storage_buffer_binding_size) = (align, binding);
        let limits =
            Limits { min_storage_buffer_offset_alignment, max_storage_buffer_binding_size, ..Limits::default() };
        Kernels::new(&Driver::new(&device, &queue).unwrap(), &limits)
    }

    /// The pieces of a job: where each of its places is, and its size.
    fn pieces<const N: usize>(kernels: &Kernels, offsets: [u64; N], size: u64) -> Vec<([u64; N], u64)> {
        let mut all = Vec::new();
        let each = |places: [(u64, u64); N], piece| {
            for (start, skip) in places {
                assert!(piece > 0 && start % kernels.align == 0 && skip + piece <= kernels.binding_max);
                assert!(skip + piece <= BINDING_MAX);
            }
            all.push((places.map(|(start, skip)| start + skip), piece));
            Ok(())
        };
        kernels.pieces(offsets, size, each).unwrap();
        all
    }

    #[test]
    fn pieces_cover_a_job_and_fit_bindings() {
        for (align, binding) in [(256, 256), (256, 300), (32, 1 << 20), (256, 3 * GIB), (256, u64::MAX)] {
            let kernels = kernels(align, binding).unwrap();
            let size = if binding < GIB { 10 * binding } else { 7 * GIB };
            for offsets in [[0, 16 * GIB], [4, 16 * GIB + 252], [100, 16 * GIB + 96]] {
                let mut done = 0;
                for (places, piece) in pieces(&kernels, offsets, size) {
                    assert_eq!(places, offsets.map(|offset| offset + done));
                    done += piece;
                }
                assert_eq!(done, size);
            }
        }
    }

    #[test]
    fn bindings_that_do_not_reach_every_word_are_refused() {
        for (align, binding) in [(256, 0), (256, 128), (256, 255), (64, 60)] {
            assert!(matches!(kernels(align, binding), Err(BackendError::Driver { .. })), "{align} {binding}");
        }
    }
}
