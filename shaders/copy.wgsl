// Copies 32-bit words between two ranges of one buffer that do not overlap.
//
// Both bindings are read_write: within one dispatch a buffer cannot be bound for reading beside a binding for writing.
// One word for each invocation and no loop; invocations are numbered as in fill.wgsl.

struct Job {
    // The first word of each range, from the start of its binding.
    from_word: u32,
    to_word: u32,
    // How many words.
    count: u32,
    unused: u32,
}

@group(0) @binding(0) var<storage, read_write> from_words: array<u32>;
@group(0) @binding(1) var<storage, read_write> to_words: array<u32>;
@group(0) @binding(2) var<uniform> job: Job;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = (group.y * groups.x + group.x) * 256u + lane;
    if at < job.count {
        to_words[job.to_word + at] = from_words[job.from_word + at];
    }
}
