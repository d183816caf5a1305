local disk = string.rep("\0", 65536)

function config(key, value) nbdkit.debug("config " .. key .. "=" .. value) end
function open(readonly) return {} end
function get_size(h) return string.len(disk) end
function pread(h, count, offset) return string.sub(disk, offset + 1, offset + count) end
function pwrite(h, buf, offset)
  disk = string.sub(disk, 1, offset) .. buf .. string.sub(disk, offset + string.len(buf) + 1)
end
function flush(h) end
