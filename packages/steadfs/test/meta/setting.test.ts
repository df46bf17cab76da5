import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { type Format, MAX_META_VERSION, parseFormat, serialiseFormat } from '../../src/format/volume.ts';
import { settingsOver, watchSetting } from '../../src/meta/setting.ts';
import { defaultOptions } from './contract.ts';

const volume: Format = {
  Name: 'v',
  UUID: '6dd1d1c5-9b0f-4b0d-8f10-6f3b3c1e2f00',
  Storage: 'file',
  Tiers: null,
  Bucket: '/b/',
  BlockSize: 4096,
  TrashDays: 1,
  EnableACL: false,
};

/** What a mount of `volume` is told at a look. */
function look(text: string | undefined): string {
  let heard = 'nothing';
  watchSetting(
    text,
    { text: serialiseFormat(volume), uuid: volume.UUID },
    {
      ...defaultOptions.events,
      volumeLost: why => {
        heard = `lost: ${why}`;
      },
      formatChanged: f => {
        heard = `TrashDays ${f.TrashDays}`;
      },
    },
    parseFormat,
  );
  return heard;
}

describe('the setting record', () => {
  it('is watched by a mount', () => {
    assert.equal(look(serialiseFormat(volume)), 'nothing');
    assert.equal(look(serialiseFormat({ ...volume, TrashDays: 9 })), 'TrashDays 9');
    assert.match(look(undefined), /^lost: the volume is gone/);
    assert.match(
      look(serialiseFormat({ ...volume, UUID: 'b0c0c0c0-9b0f-4b0d-8f10-6f3b3c1e2f00' })),
      /^lost: .*another/,
    );
    assert.match(look(serialiseFormat({ ...volume, MetaVersion: MAX_META_VERSION + 1 })), /^lost: metadata version/);
    assert.match(look('{ no JSON'), /^lost: /);
  });

  it('keeps the identity of the volume', () => {
    assert.equal(settingsOver(volume, { ...volume, UUID: 'x', TrashDays: 3 }, false).UUID, volume.UUID);
    assert.throws(() => settingsOver(volume, { ...volume, BlockSize: 1024 }, false), /BlockSize cannot be changed/);
    assert.equal(settingsOver(volume, { ...volume, BlockSize: 1024 }, true).BlockSize, 1024);
  });
});
